"""Names of outputs that are valid and different on every file system, and names as text that everything can show."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping

# The shortest limit in use is eCryptfs's, 143 bytes; what is left is for a number and a suffix.
LONGEST = 120
# What Windows refuses in names or reserves, and what separates folders anywhere.
FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
# Control characters, invisible formatting, bytes that are no text (surrogates), private and unassigned characters.
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def file_stems(wished: Mapping[str, str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """A stem for the file of each item: the wished one where every file system takes it.

    Where one would not, or would take it for the stem of another item (upper and lower case, composed and decomposed
    letters), the stem ends in "~" and a part of the item's hash.

    Args:
        wished: item -> stem.
        given: stems that items got earlier and keep.
    """
    stems = dict(given or {})
    taken = {collision_key(stem) for stem in stems.values()}
    for item, wish in wished.items():
        if item in stems:
            continue
        stem, salt = _portable(wish, item), 0
        while collision_key(stem) in taken:
            stem, salt = _hashed(_cleaned(wish), f"{item}{salt or ''}"), salt + 1
        taken.add(collision_key(stem))
        stems[item] = stem
    return stems


def collision_key(name: str) -> str:
    """The same for two names that some file system takes for one."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFD", name).casefold()


def readable(name: str) -> str:
    """A name, of which a file's may be any bytes, as text of one line: what is none is written as an escape."""
    if name.isprintable():
        return name
    return "".join(
        character.encode("unicode_escape", "backslashreplace").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in name
    )


def _portable(wish: str, item: str) -> str:
    """The wish, or where some file system refuses it, a stem like it that ends in the item's hash."""
    stem = _cleaned(wish)
    return stem if stem == wish and len(stem.encode()) <= LONGEST else _hashed(stem, item)


def _cleaned(name: str) -> str:
    """The name with "_" for what some file system refuses."""
    if not name.isprintable():
        name = "".join("_" if unicodedata.category(character) in INVISIBLE else character for character in name)
    stem = FORBIDDEN.sub("_", name).strip(" .")
    return f"_{stem}" if not stem or RESERVED.fullmatch(stem) else stem


def _hashed(stem: str, content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    # Cut by bytes, not within a character.
    start = stem.encode()[: LONGEST - len(digest) - 1].decode("utf-8", "ignore").rstrip(" .")
    return f"{start}~{digest}"
