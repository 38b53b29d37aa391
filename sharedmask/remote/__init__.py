"""Files on servers: read forward as files are, and nothing of them is kept on a disk.

Covers: which paths are URLs, HTTP and the file systems of fsspec, going on where a line was cut, telling
another object from the first. Does not cover: what the bytes mean (``decoding``, ``sources``).

From the bottom up::

    addresses  retries  version  trees  threads  http  filesystems  objects
"""
