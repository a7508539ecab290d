"""Sanderling: an agent for small Linux devices that keeps learning, and the server that leads the flock.

The packages and who may import whom (checked by import-linter)::

    codec  <-  engine  <-  agent
                       <-  server
    demo: starts the command line only

Importing this package costs nothing: every subpackage is imported by whoever needs it.
"""

__version__ = "0.1.0"
