"""Everything clray writes and reads back: paths, folders that are committed whole, state files.

- ``filesystem``  one small interface over a local disk (``disk``) and object stores (``objects``)
- ``layout``      every path and file name, and the columns of the tables
- ``commit``      COMMIT.json, the file that makes a folder count
- ``writer``      writes a folder and commits it (``staging`` holds the two ways to publish), and small files
- ``reader``      follows COMMIT.json only
- ``upkeep``      leftovers, damaged folders, old state
- ``checkpoint``  resume state to bytes and back
"""
