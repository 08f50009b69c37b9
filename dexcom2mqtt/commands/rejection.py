"""Why Share may not accept the credentials of an account: what can be seen of them, and what a person can try.

What it says of the account pages and of phone numbers is from pydexcom's answers to frequent questions.
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
_PHONE_AS_WANTED: Final = re.compile(r"\+[0-9]+")
_LONGEST_PASSWORD: Final = 30
"""Users report that a longer one works in Dexcom's app and not here."""
_EXAMPLES: Final = "@example.com"
_UNSEEN: Final = {"Cc", "Cf", "Zl", "Zp", "Zs"}
"""Categories of characters that cannot be seen, or that look like a blank."""


def causes_of_rejection(account: Account) -> Iterator[str]:
    """Yield why Share may not accept the credentials, what can be seen of them first; it does not say itself."""
    page = _ACCOUNT_PAGES[account.region]
    name = None if account.username is None else account.username.get_secret_value()
    others = [f"{other}, the region is {region}" for region, other in _ACCOUNT_PAGES.items() if other != page]
    phone = "A phone number is written with + and the country code, and nothing else: '+11234567890'."
    seems_phone = name is not None and _PHONE.fullmatch(name.strip()) and not _PHONE_AS_WANTED.fullmatch(name.strip())
    if seems_phone:
        yield f"The user name looks like a phone number. {phone}"
    if name is not None:
        yield from _seen_of_name(name)
    yield from _seen_of_password(account.password.get_secret_value(), page)
    yield (
        "They have to be those of the person who wears the sensor, as in the Dexcom app that shows the readings; not a "
        "follower's, nor those of somebody who manages the account of a child."
    )
    yield (
        f"The region has to be the account's. For {account.region} they have to work at {page}. If they work at "
        f"{'; at '.join(others)}."
    )
    if name is not None and not seems_phone:
        yield phone
    yield f"The password is mistyped: {page} lets you try it, and make a new one."
    yield f"Dexcom may ask for consent to new terms, and accept no sign-in until it has it: sign in once at {page}."
    if name is not None:
        yield (
            f"If they are right, try the account id in place of the user name: once signed in at {page}, it is in the "
            "page's address. Write it as account_id: 12345678-90ab-cdef-1234-567890abcdef."
        )
    yield (
        "If they worked until now: Dexcom may also reject correct credentials after too many sign-ins. Stop other "
        "programs that use the account, and wait 20 minutes. Each check is a try, and a few wrong ones lock the "
        "account: change something before the next."
    )


def _seen_of_name(name: str) -> Iterator[str]:
    """Yield what is odd about a user name, without showing it."""
    if name.strip() in EXAMPLES or name.strip().casefold().endswith(_EXAMPLES):
        yield "The user name is still the one of the examples. Put in the one that signs in to the Dexcom app."
    if name != name.strip():
        yield "The user name begins or ends with a blank: remove it."
    if any(unicodedata.category(character) in _UNSEEN for character in name.strip().replace(" ", "")):
        yield (
            "The user name has a character in it that cannot be seen, or that only looks like a blank, as comes with "
            "copying. Type it by hand."
        )


def _seen_of_password(password: str, page: str) -> Iterator[str]:
    """Yield what is odd about a password, without showing it."""
    if password.strip() in EXAMPLES:
        yield "The password is still the one of the examples. Put in the one that signs in to the Dexcom app."
    if password != password.strip():
        yield "The password begins or ends with a blank: remove it, unless it is a part of the password."
    if password.strip().isdecimal():
        yield (
            "The password is of digits alone. Users report that Share rejects such ones, although Dexcom's app takes "
            f"them: make a new one, with letters and digits, at {page}."
        )
    if len(password) > _LONGEST_PASSWORD:
        yield (
            f"The password has more than {_LONGEST_PASSWORD} characters. Users report that Share rejects long ones, "
            f"although Dexcom's app takes them: make a shorter one at {page}."
        )
