"""The bytes of a file, plain or compressed, from its beginning or from any place.

Covers: codecs, checksums, seek points, decoding on several cores. Does not cover: what the bytes mean
(``sources``), where seek points are kept (``indexes``).

From the bottom up::

    codecs  seek_points  bgzf  parallel  search
"""
