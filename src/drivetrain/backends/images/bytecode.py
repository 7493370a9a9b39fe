"""Python files compiled for an image: `python -S -s bytecode.py SOURCE.zip TARGET.zip PREFIX`, by a Python of the image's version.

An image's file system is read-only and belongs to root, so that what is not compiled beforehand is compiled again at each start.
The files are marked as unchecked: their sources are in the same layer, and none is looked at when a module is imported. Run by
itself, in a fresh process, since what was compiled before may show in the result; and so it imports nothing but the standard library.

The bytes follow from the source and from the release of Python: its compiler lays out some jumps and line tables otherwise from one
patch release to the next (of 21,035 files 76 differ between 3.11.2 and 3.11.7). How the code is written down makes no difference to
that: without marshal's references the same 76 differ.
"""

import importlib.util
import marshal
import struct
import sys
import warnings
import zipfile
from _imp import source_hash

UNCHECKED = 1
"""The flag in a compiled file's header: hash-based, and not to be compared with the source."""


def compiled(source: bytes, path: str) -> bytes | None:
    """The compiled file's bytes; None where the source is for another Python (a template, a test of syntax errors)."""
    try:
        code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError):
        return None
    raw_magic = int.from_bytes(importlib.util.MAGIC_NUMBER, "little")
    header = importlib.util.MAGIC_NUMBER + struct.pack("<I", UNCHECKED) + source_hash(raw_magic, source)
    return header + marshal.dumps(code)


def cached_name(name: str) -> str:
    """Where Python looks for the compiled form of `a/b.py`: `a/__pycache__/b.cpython-311.pyc`."""
    return importlib.util.cache_from_source(name, optimization="")


def main(source: str, target: str, prefix: str) -> None:
    """Compiles every `.py` file of a zip file into another one."""
    warnings.simplefilter("ignore")
    with zipfile.ZipFile(source) as files, zipfile.ZipFile(target, "w") as found:
        for name in sorted(files.namelist()):
            if not name.endswith(".py"):
                continue
            code = compiled(files.read(name), f"{prefix}/{name}")
            if code is not None:
                found.writestr(zipfile.ZipInfo(cached_name(name)), code)


if __name__ == "__main__":
    main(*sys.argv[1:])
