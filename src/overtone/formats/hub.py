"""To and from the Hugging Face Hub, through `huggingface_hub` (which the extra `lm` brings)."""

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from overtone.dictionary import Dictionary
from overtone.formats.folders import export
from overtone.formats.plain import FormatError

SPELT = "hub:OWNER/NAME[/FOLDER][@REVISION]"
PART = re.compile(r"[\w][\w.\-=+]*")
# Nothing else of a repository is fetched: no code, no pickles but dictionary_learning's, which is read as data.
FETCHED = ("*.safetensors", "*.json", "*.npz", "ae.pt")


class Place(NamedTuple):
    """Where a dictionary lies on the Hub: repository, folder in it ("" at its top), revision (None: the newest)."""

    repo: str
    folder: str
    revision: str | None


def place(text: str) -> Place:
    """The place that a text such as "hub:owner/name/folder@revision" names."""
    rest, _, revision = text.removeprefix("hub:").partition("@")
    parts = rest.split("/")
    if not text.startswith("hub:") or len(parts) < 2 or not all(map(PART.fullmatch, parts)) or ".." in rest:
        raise FormatError(f"{text!r} is no place on the Hub; write {SPELT}, with names of letters, digits and -_.=+")
    if "@" in text and not all(map(PART.fullmatch, revision.split("/"))):
        raise FormatError(f"{revision!r} in {text!r} is no revision: a branch, a tag or the hash of a commit")
    return Place("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def fetch(text: str) -> Path:
    """Fetch a dictionary's files (from the cache, where they are), and say where they are."""
    wanted = place(text)
    below = f"{wanted.folder}/" if wanted.folder else ""
    try:
        root = _hub().snapshot_download(
            wanted.repo, revision=wanted.revision, allow_patterns=[f"{below}{pattern}" for pattern in FETCHED]
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{text} cannot be fetched: {error}") from error
    return Path(root) / wanted.folder


def push(
    dictionary: Dictionary,
    repo: str,
    to: str = "saelens",
    info: dict[str, Any] | None = None,
    *,
    private: bool = False,
    api: Any = None,
) -> str:
    """Export a dictionary, with its model card, into a repository of the Hub.

    Args:
        dictionary: it.
        repo: "owner/name", or "owner/name/folder" for one dictionary among several; created where it does not exist.
        to: the format.
        info: as in `export`.
        private: whether a new repository is visible to its owner alone.
        api: what to upload with; None: `huggingface_hub.HfApi()`, with the token that `hf auth login` left.

    Returns:
        What `load` fetches it by.
    """
    wanted = place(f"hub:{repo.removeprefix('hub:')}")
    api = api or _hub().HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(dictionary, Path(temporary) / "export", to, info)
        api.create_repo(wanted.repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=wanted.repo,
            folder_path=str(folder),
            path_in_repo=wanted.folder or None,
            revision=wanted.revision,
            commit_message=f"{to} dictionary of {dictionary.latents} latents, by overtone",
        )
    return f"hub:{wanted.repo}{'/' if wanted.folder else ''}{wanted.folder}"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('the Hugging Face Hub needs huggingface_hub: pip install "overtone[lm]"') from error
    return huggingface_hub
