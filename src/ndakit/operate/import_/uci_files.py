"""UCI files of a balancer, read as uci takes them, with every line accounted for."""

from __future__ import annotations

from dataclasses import dataclass

from ndakit.core.uci import Section, UciError, read_leniently
from ndakit.operate.import_.ledger import SourceFile


@dataclass
class UciFile:
    """The sections of one file, and its account."""

    file: SourceFile
    sections: list[Section]

    def of(self, *types: str) -> list[Section]:
        """The sections of some types, in order."""
        return [s for s in self.sections if s.type in types]

    def take(self, section: Section, *names: str, key: str) -> list[str]:
        """The values of an option or list (of the first of these names that is there), told as used for a key."""
        for name in names:
            options = [o for o in section.options if o.name == name]
            if options:
                self.head(section, key)
                for option in options:
                    self.file.key(option.line, key)
                return [option.value for option in options]
        return []

    def head(self, section: Section, key: str) -> None:
        """The section's first line goes with what it holds."""
        if section.line not in self.file.fates:
            self.file.key(section.line, key)

    def used(self, section: Section, name: str, key: str) -> None:
        """An option's lines were used for a key."""
        for option in section.options:
            if option.name == name:
                self.file.key(option.line, key)

    def whole(self, section: Section, key: str) -> None:
        """All of a section was used for a key."""
        self.file.key(section.line, key)
        for option in section.options:
            self.file.key(option.line, key)

    def unsaid(self, section: Section, why: str) -> None:
        """No key says the section."""
        self.file.hint(section.line, why)
        for option in section.options:
            self.file.hint(option.line, why)

    def hint(self, section: Section, name: str, why: str) -> None:
        """Why no key says an option."""
        for option in section.options:
            if option.name == name:
                self.file.hint(option.line, why)


def opened(file: SourceFile) -> UciFile:
    """Read a file; what uci would not take is told as unsaid."""
    sections, faults = read_leniently("\n".join(file.lines))
    for fault in faults:
        file.unsaid(min(fault.line, len(file.lines)), _words(fault))
    return UciFile(file, sections)


def _words(fault: UciError) -> str:
    return f"UCI does not take it: {fault.message}"
