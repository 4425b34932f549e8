"""Writes files so that a failure leaves the earlier one as it was."""

import contextlib
import errno
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def atomic_path(filepath, suffix="", num_bytes=0):
    """Yields a path beside `filepath` to write to, and moves what is there to `filepath` once it is complete.

    A file takes the place of a file; a folder that of an empty or absent folder.

    Args:
      filepath: where the result is to be.
      suffix: what the path that is yielded ends with.
      num_bytes: about the size of the file, which must be free before anything is written.

    Raises:
      FileNotFoundError: if the folder that `filepath` is in does not exist.
      OSError: if the disk is full.
    """
    target = pathlib.Path(filepath).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of {str(filepath)!r} does not exist; nothing was written.")
    # Short: the name of the target may be as long as a name can be.
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


def check_suffix(filepath, suffixes, hint=None) -> None:
    """Raises TypeError if it is no path, and ValueError if it ends with none of the suffixes."""
    if not isinstance(filepath, (str, os.PathLike)):
        raise TypeError(f"`filepath` must be a path; got {type(filepath).__name__}.")
    if not str(filepath).endswith(suffixes):
        expected = " or ".join(f"`{suffix}`" for suffix in suffixes)
        hint = "" if hint is None else f"; {hint}"
        raise ValueError(f"`filepath` must end in {expected}; got {str(filepath)!r}{hint}.")


def is_local(filepath) -> bool:
    """Whether it is a path, and no address such as gs://..."""
    return "://" not in str(filepath)


def _check_room(path, num_bytes):
    # HDF5 crashes the process some time after it met a full disk, so it must not meet one.
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except AttributeError:
            if shutil.disk_usage(path.parent).free < num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        except OSError as error:
            # File systems that cannot reserve room say so.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    path.unlink()
