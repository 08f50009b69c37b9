"""Why Share may reject the credentials of an account: what looks wrong with them, and what to try.

The advice about account pages and phone numbers comes from pydexcom's FAQ.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.config.lookalikes import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.share import Region

_ACCOUNT_PAGES: Final[dict[Region, str]] = {"us": "uam1.dexcom.com", "ous": "uam2.dexcom.com", "jp": "uam.dexcom.jp"}
_PHONE: Final = re.compile(r"\+?(?:[ ()./-]*\d){7,}[ ()./-]*")
_VALID_PHONE: Final = re.compile(r"\+[0-9]+")
_LONGEST_PASSWORD: Final = 30
"""Users report that longer ones work in the Dexcom app, but not with Share."""
_EXAMPLES: Final = "@example.com"
_INVISIBLE: Final = {"Cc", "Cf", "Zl", "Zp", "Zs"}
"""Unicode categories of characters that are invisible or look like a space."""


def causes_of_rejection(account: Account) -> Iterator[str]:
    """Yield why Share may reject the credentials, visible oddities first; Share itself gives no reason."""
    page = _ACCOUNT_PAGES[account.region]
    name = None if account.username is None else account.username.get_secret_value()
    others = [f"{other}, the region is {region}" for region, other in _ACCOUNT_PAGES.items() if other != page]
    phone = "Write a phone number with + and the country code, and digits only: '+11234567890'."
    seems_phone = name is not None and _PHONE.fullmatch(name.strip()) and not _VALID_PHONE.fullmatch(name.strip())
    if seems_phone:
        yield f"The user name looks like a phone number. {phone}"
    if name is not None:
        yield from _odd_in_name(name)
    yield from _odd_in_password(account.password.get_secret_value(), page)
    yield (
        "The credentials must be those of the person who wears the sensor, as in the Dexcom app that shows the "
        "readings; not a follower's, nor those of someone who manages a child's account."
    )
    yield (
        f"The region may be wrong. With region {account.region}, the credentials must work at {page}. If they work at "
        f"{'; at '.join(others)}."
    )
    if name is not None and not seems_phone:
        yield phone
    yield f"The password may be mistyped: try it at {page}, or set a new one there."
    yield f"Dexcom may be waiting for consent to new terms and reject sign-ins until then: sign in once at {page}."
    if name is not None:
        yield (
            f"If they are correct, try the account id instead of the user name: once signed in at {page}, it is in the "
            "page's address. Write it as account_id: 12345678-90ab-cdef-1234-567890abcdef."
        )
    yield (
        "If they worked until now: Dexcom may also reject correct credentials after too many sign-ins. Stop other "
        "programs that use the account, and wait 20 minutes. Each check is a sign-in, and a few rejected ones lock "
        "the account: change something before the next."
    )


def _odd_in_name(name: str) -> Iterator[str]:
    """Yield what looks wrong with a user name, without showing it."""
    if name.strip() in EXAMPLES or name.strip().casefold().endswith(_EXAMPLES):
        yield "The user name is still the example's placeholder. Use the one that signs in to the Dexcom app."
    if name != name.strip():
        yield "The user name begins or ends with a space: remove it."
    if any(unicodedata.category(character) in _INVISIBLE for character in name.strip().replace(" ", "")):
        yield (
            "The user name contains an invisible character, or one that only looks like a space, probably from "
            "copying. Type it by hand."
        )


def _odd_in_password(password: str, page: str) -> Iterator[str]:
    """Yield what looks wrong with a password, without showing it."""
    if password.strip() in EXAMPLES:
        yield "The password is still the example's placeholder. Use the one that signs in to the Dexcom app."
    if password != password.strip():
        yield "The password begins or ends with a space: remove it, unless it is part of the password."
    if password.strip().isdecimal():
        yield (
            "The password is only digits. Users report that Share rejects such passwords, although the Dexcom app "
            f"accepts them: set a new one, with letters and digits, at {page}."
        )
    if len(password) > _LONGEST_PASSWORD:
        yield (
            f"The password has more than {_LONGEST_PASSWORD} characters. Users report that Share rejects long ones, "
            f"although the Dexcom app accepts them: set a shorter one at {page}."
        )
