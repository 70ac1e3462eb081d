"""The modelling code that exported folders carry, by its hash: to open a folder may run these files and no others.

Every earlier version stays here, so that old exports open: when a file changes, the hash of what it was gets a line.
What is installed is known without one.
"""

from hashlib import sha256
from pathlib import Path

RELEASED_CODE = frozenset(
    {
        # modeling_roformer_v2.py
        "ef6577b317432a090f387d72e23f959a59f7f74309614758610e436104609c6e",
        "cc6eb2c2aed5d7fb7bbdb72af38be6b287ac05ca0e6eee4f52e0408b9cb8ac32",
        "c24c6f1e763cec53e87fa89075a5a6096c52e67fa555e2ed36ed4ca478a0e698",
        "5f4c19b2e8f90524474398e22a5c628da6683cc9952b78c605e2157e99279902",
        "2f1ced0930f4f97dd2bacecbe3c996651ad744846b422938fc67b59a54bed4ba",
        "a94fcdb9c6b7eb867bdad6d3758265da82f8d7b667cb90d0d79a14648c8305e7",
        "9912f649ba62cb33e5c2c8bd0fbc29cd0b5ead816e57247f973bc215dab10578",
        "a0c355c68646ff291ef34d99a856f1505e901eca2058595f7b850b8518d3192a",
        "5f3a7cac85a5f519d568d4ad95fd615913edfe5f4cdd90b750a078c67da163da",
        "a8710289904cffec1c66f6f019ca30bdb413671ecc9a6dbacb7e7e02b680a1fe",
        "3301a6fca51f278312b38afc05134cefc391e3dec905a4958dda71fc0317fbcc",
        "31aefede33f8d94cf848f33dd8e2a5890072629a182c5b14310efd5749ce7a2e",
        "410311a68e59c64cbd1272919537cd4f07c339f978dbf419548650a24b92f388",
        # configuration_roformer_v2.py
        "79668fdad798bc90f293b092296979632ab8d2a2ff483abcac3417f05d2dfbe2",
        "274fc1af39dc3a176ff39932f40972e99ec7e84f333dd60bc4506d765544a941",
        "f5f50972de26217de8ad800d1b00cf0e42c6ee82a1feb7f350f8208e69842730",
        "b6cfb4a70daf32f31cb799e6ea3a7401c64a5b31df5c106adfa8059aae454121",
        "ad7e08c15bdb40d84dfc82288b4aa3f29fdad5b48130598bfe095d876558af03",
    }
)
"""SHA-256 of the bytes of each file, in hexadecimal digits."""


def is_our_code(code: bytes) -> bool:
    """Return whether ``code`` is all of a file that this installation or an earlier version puts into folders."""
    installed = Path(__file__).parent.glob("*_roformer_v2.py")
    return sha256(code).hexdigest() in RELEASED_CODE or any(code == path.read_bytes() for path in installed)
