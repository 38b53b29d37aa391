"""Files that lie on a server: read as files are, forward, and nothing of them is kept on a disk.

From the bottom up: ``addresses`` (what is a URL), ``patience`` (what is tried again, and when no more),
``http`` and ``filesystems`` (the two ways to a server's bytes), ``objects`` (one object: what it is, its
bytes as a file, what lies beside it).
"""
