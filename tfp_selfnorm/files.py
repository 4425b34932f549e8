"""Writes files so that a failure leaves the earlier one as it was."""

import contextlib
import os
import pathlib
import shutil


@contextlib.contextmanager
def replacing(filepath, suffix=""):
    """Yields a path beside `filepath` to write to, and moves what is there to `filepath` once it is complete.

    A file takes the place of a file; a folder that of an empty or absent folder.

    Args:
      filepath: where the result is to be.
      suffix: what the path that is yielded ends with.

    Raises:
      FileNotFoundError: if the folder that `filepath` is in does not exist.
    """
    target = pathlib.Path(filepath).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of {str(filepath)!r} does not exist; nothing was written.")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial{suffix}")
    try:
        yield partial
        if partial.is_file():
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def is_local(filepath) -> bool:
    """Whether it is a path, and no address such as gs://..."""
    return "://" not in str(filepath)
