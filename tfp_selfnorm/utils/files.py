"""Writes files. If a write fails, the earlier file stays as it was."""

import contextlib
import errno
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_path(filepath: str | os.PathLike, suffix: str = "", num_bytes: int = 0) -> Iterator[pathlib.Path]:
    """Yields a path beside `filepath` to write to, and moves the result to `filepath` once it is complete.

    A file replaces a file. A folder replaces an empty folder.

    Args:
      filepath: the path of the result.
      suffix: the suffix of the yielded path.
      num_bytes: the approximate size of the file. So much room must be free on the disk before the write.

    Raises:
      FileNotFoundError: if the folder of `filepath` does not exist.
      OSError: if the disk is full.
    """
    target = pathlib.Path(filepath).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of {str(filepath)!r} does not exist; nothing was written.")
    # Short, since the name of the target may already have the greatest length.
    partial = target.with_name(f".{uuid.uuid4().hex}.partial{suffix}")
    try:
        if num_bytes:
            _check_room(partial, num_bytes)
        yield partial
        if partial.is_file():
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            if target.is_file():
                shutil.copymode(target, partial)
        os.replace(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def check_suffix(filepath: str | os.PathLike, suffixes: tuple[str, ...], hint: str | None = None) -> None:
    """Raises TypeError if it is no path, and ValueError if it ends with none of the suffixes."""
    if not isinstance(filepath, (str, os.PathLike)):
        raise TypeError(f"`filepath` must be a path; got {type(filepath).__name__}.")
    if not str(filepath).endswith(suffixes):
        expected = " or ".join(f"`{suffix}`" for suffix in suffixes)
        hint = "" if hint is None else f"; {hint}"
        raise ValueError(f"`filepath` must end in {expected}; got {str(filepath)!r}{hint}.")


def is_local(filepath: str | os.PathLike) -> bool:
    """Whether it is a path on this computer, and no address such as gs://..."""
    return "://" not in str(filepath)


def _check_room(path, num_bytes):
    # After a full disk, HDF5 crashes the process. So it must not meet one.
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except AttributeError:
            if shutil.disk_usage(path.parent).free < num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        except OSError as error:
            # These errors come from file systems that cannot reserve room.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    path.unlink()
