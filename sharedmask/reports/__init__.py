"""What is shown of a study: its quality in numbers, in pictures, and on pages.

Covers: measures of a run's quality, the order of its carpet, figures, HTML. Does not cover: which runs there
are, where pages are put (``study``), how signals come to be (``compute``).

From the bottom up::

    quality  carpet  figures  meshes  pages
"""
