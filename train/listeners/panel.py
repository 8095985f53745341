"""The live panel of a training, drawn with rich: where it stands, how it goes, what the last epochs gave."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .pace import Pace, duration

__all__ = ["draw_panel"]

WIDEST = 100  # columns: on a wide terminal the eye would have to travel
BLOCKS = "▁▂▃▄▅▆▇█"
MOST_BLOCKS = 40  # epochs
CELL = 13  # columns of a figure and its label
MUCH_WAITING = 0.2  # the share of time at which more workers would help
LABEL, NUMBER, ALARM = "dim", "bold", "bold yellow"


def draw_panel(pace: Pace, title: str, note: str, validation: Sequence[float]) -> RenderableType:
    """The panel. `note` says what goes on between epochs; `validation` is the top-1 accuracy of each epoch so far."""
    parts: list[RenderableType] = [Text(), _heading(pace, title, note), _bars(pace), Figures(pace)]
    if validation:
        parts.append(Trend(validation))
    return Constrain(Group(*parts), WIDEST)


def _heading(pace: Pace, title: str, note: str) -> RenderableType:
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    line.add_row(Text(title, style="bold"), Text(note, style=LABEL))
    return line


def _bars(pace: Pace) -> RenderableType:
    bars = Table.grid(expand=True, padding=(0, 1))
    bars.add_column(no_wrap=True)
    bars.add_column(ratio=1)
    bars.add_column(justify="right", no_wrap=True)
    left = "" if pace.seconds_left is None else f"{duration(pace.seconds_left)} left"
    for label, total, done, end in (
        (
            f"epoch {pace.epoch + 1}/{pace.epochs}",
            pace.steps_per_epoch,
            pace.step_in_epoch,
            f"step {pace.step_in_epoch:,}/{pace.steps_per_epoch:,}",
        ),
        ("all", pace.steps, pace.done, left),
    ):
        bar = ProgressBar(total=total, completed=done, complete_style="blue", finished_style="blue")
        bars.add_row(Text(label, style=LABEL), bar, Text(end))
    return bars


class Figures:
    """Each figure with its label under it, in as many rows as the width asks for."""

    def __init__(self, pace: Pace) -> None:
        waiting, skipped = pace.wait_share, pace.skipped
        cells = (
            ("loss", pace.loss.value, "{:.3f}", NUMBER),
            ("top-1", pace.top1.value, "{:.1%}", NUMBER),
            ("learning rate", pace.learning_rate, "{:.2g}", NUMBER),
            ("images/s", pace.images_per_second, "{:,.0f}", NUMBER),
            ("data wait", waiting, "{:.0%}", ALARM if waiting is not None and waiting >= MUCH_WAITING else NUMBER),
            ("skipped", skipped, "{:,}", ALARM if skipped else NUMBER),
        )
        self.cells = [
            (Text("-" if value is None else form.format(value), style), Text(label, LABEL))
            for label, value, form, style in cells
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = min(len(self.cells), max(1, options.max_width // CELL))
        columns = -(-len(self.cells) // -(-len(self.cells) // columns))  # rows of the same length
        for first in range(0, len(self.cells), columns):
            table = Table.grid(expand=True, padding=(0, 1))
            for _ in range(columns):
                table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
            for row in zip(*self.cells[first : first + columns], strict=True):
                table.add_row(*row)
            yield table


class Trend:
    """Validation accuracy: the last epoch, the best one, and a line of blocks where the terminal can show them."""

    def __init__(self, validation: Sequence[float]) -> None:
        self.validation = validation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        last, best = self.validation[-1], max(self.validation)
        text = Text(f"{last:.1%}", NUMBER, no_wrap=True, overflow="ellipsis")
        text.append(" validation top-1", "not bold dim")
        if best > last:
            text.append(f", best {best:.1%} after epoch {self.validation.index(best) + 1}", "not bold dim")
        room = min(MOST_BLOCKS, options.max_width - len(text) - 2)
        if len(self.validation) > 1 and room > 1 and not options.ascii_only:
            text.append("  " + _blocks(self.validation[-room:]), "not bold blue")
        yield text


def _blocks(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in values)
