"""The tree of what can go wrong.

Covers: every exception and warning that sharedmask raises on purpose. Does not cover: what
messages say (each is written where the fact is known) nor exit codes (``cli.base``).

::

    SharedMaskError
    ├── ImageError (ValueError)            an image of a kind that cannot be served
    │   ├── DamagedImageError (OSError)    truncated, wrong checksum, or not what its name says
    │   │   └── SourceChangedError         written to, or replaced, since it was opened
    │   ├── MissingFileError (FileNotFoundError)
    │   └── RemoteError (OSError)          a server refuses an image, or cannot be reached
    ├── MaskError (ValueError)             a mask, atlas or look-up table that cannot be used
    │   ├── EmptyMaskError
    │   ├── GridMismatchError
    │   └── OutsideImageError              voxels are asked for that the image does not hold
    ├── ConnectomeError (ValueError)       a file is no connectome, or not the same one as the others
    ├── ParameterError (ValueError)        a parameter that makes no sense for this image
    │   ├── ConfoundsError                 a table of confounds that cannot be used
    │   └── FrameIndexError (IndexError)   there is no such frame
    ├── DatasetError (ValueError)          a folder that is no BIDS data set
    ├── NoInputError (ValueError)          a data set has nothing of what is asked for
    ├── ClosedImageError (ValueError)      the image was closed
    ├── MemoryLimitError (MemoryError)     refused before allocating
    ├── SegmentError (OSError)             a shared segment cannot be made
    │   ├── AttachError                    a handle that does not lead to its segment
    │   └── LockError                      a file system has no locks
    ├── WorkerError (RuntimeError)         a worker process died or its function raised
    └── CallbackError (RuntimeError)       the caller's function for a batch raised

Each also inherits the builtin that a caller already catches.
"""


class SharedMaskError(Exception):
    """Base of all errors that sharedmask raises on purpose."""


class ImageError(SharedMaskError, ValueError):
    """The image is of a kind that cannot be served."""


# The builtin comes first where its constructor is needed: who sends exceptions (Dask) looks for one.
class DamagedImageError(OSError, ImageError):
    """The file is truncated, its checksum is wrong, or it is not what its name says."""


class SourceChangedError(DamagedImageError):
    """The file was written to or replaced since it was opened: its values would be of two images."""


class MissingFileError(FileNotFoundError, ImageError):
    """There is no such file, or a pattern matches none."""


class RemoteError(OSError, ImageError):
    """A server refuses a file, or cannot be reached however often it is tried."""


class MaskError(SharedMaskError, ValueError):
    """A mask, an atlas or a look-up table cannot be used."""


class EmptyMaskError(MaskError):
    """A mask has no voxel."""


class GridMismatchError(MaskError):
    """A mask lies on another grid than the image; made of what is wrong, and what to do about it."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    def instead(self, todo: str) -> "GridMismatchError":
        """The same where something else can be done about it, if anything can."""
        return GridMismatchError(*self.args[:1], todo) if len(self.args) > 1 else self


class OutsideImageError(MaskError):
    """Voxels are asked for that the image does not hold."""


class ConnectomeError(SharedMaskError, ValueError):
    """A file is no connectome, or belongs to another one than the other files."""


class ParameterError(SharedMaskError, ValueError):
    """A parameter makes no sense, alone or for this image."""


class ConfoundsError(ParameterError):
    """A table of confounds cannot be used, or belongs to another image."""


class FrameIndexError(ParameterError, IndexError):
    """There is no such frame."""


class DatasetError(SharedMaskError, ValueError):
    """A folder is no BIDS data set, or one of its files cannot be read."""


class NoInputError(SharedMaskError, ValueError):
    """A data set has nothing of what is asked for."""


class ClosedImageError(SharedMaskError, ValueError):
    """The image was closed."""


class MemoryLimitError(MemoryError, SharedMaskError):
    """The operation would need more memory than it may use; nothing was allocated."""


class SegmentError(SharedMaskError, OSError):
    """A shared segment cannot be made."""


class AttachError(SegmentError):
    """A handle does not lead to its segment."""


class LockError(SegmentError):
    """A file cannot be locked: its file system has no locks."""


class WorkerError(SharedMaskError, RuntimeError):
    """A worker process died, or the function it ran raised."""


class CallbackError(SharedMaskError, RuntimeError):
    """The caller's function for a batch raised; ``outcome`` holds all that was done until then."""

    outcome: object = None


class SharedMaskWarning(UserWarning):
    """Something that the user should know and that is not an error."""
