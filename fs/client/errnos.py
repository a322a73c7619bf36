"""What the kernel is told about an error: the one table."""

import errno

from fs.errors import FsError


class FileError(FsError):
    """A question about a file that has a plain answer, as ENOENT or ENODATA: nothing went wrong."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.code = code


def errno_of(error: BaseException) -> int:
    """The error number for *error*.

    Whatever is missing, corrupt, not trusted or out of reach is EIO: an object that cannot be had is not a file that
    does not exist.
    """
    return error.code if isinstance(error, FileError) else errno.EIO
