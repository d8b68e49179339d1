"""The main job in one command: `python -m examples.demo` (or `make demo`). Exits 0 only if everything was as stored.

With names of plays (`python -m examples.demo hamlet`, `make demo PLAYS=hamlet`) their text alone is stored: seconds.
"""

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console

from engram import AsyncEngram, EngramError
from examples.demo import story
from examples.demo.corpus import Speech, read_corpus
from examples.demo.figures import Figures
from examples.demo.local import LocalMode, LocalModeFailed, local_mode


async def run(local: LocalMode, speeches: tuple[Speech, ...], figures: Figures) -> None:
    """The whole story, in order; raises at the first thing that is not as it should be."""
    async with AsyncEngram(local.url) as client:
        await story.wait_up(client, local, figures)
        stored = await story.store(client, speeches, figures)
        await story.read_back(client, stored, figures)
        await story.list_users(client, stored, figures)
        await story.search(client, stored, figures)
        await story.show_places(client, stored, figures, "Where slots and memories lie")

        figures.say(f"\n[bold]engram stop {story.LOST}[/bold]")
        await asyncio.to_thread(local.order, "stop", story.LOST)
        await story.lose_a_shard(client, stored, figures)

        figures.say(f"\n[bold]engram start {story.LOST}[/bold]")
        await asyncio.to_thread(local.order, "start", story.LOST)
        await story.wait_back(client, stored)
        await story.read_back_in_batches(client, stored, figures)
        await story.show_places(client, stored, figures, "All is back")


def main(plays: Sequence[str]) -> int:
    """0, or 1 after a line that says what was wrong."""
    figures = Figures(Console())
    try:
        speeches = read_corpus(plays)
        users, told = len({speech.speaker for speech in speeches}), len({speech.play for speech in speeches})
        figures.say(
            f"[bold]Engram demo[/bold]: {len(speeches):,} speeches of {users:,} speakers, {told} of Shakespeare's plays"
        )
        with local_mode() as local:
            asyncio.run(run(local, speeches, figures))
        figures.summary()
    except (EngramError, story.Mismatch, LocalModeFailed, FileNotFoundError) as error:
        figures.say(f"[bold red]The demo failed[/bold red]: {type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    figures.say(
        "[bold green]All that was stored was found, before, and after a shard was lost and came back.[/bold green]"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
