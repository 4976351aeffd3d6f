"""Reads the text format of OpenMetrics 1.0 strictly: what is not as it demands is an error."""

import re
from dataclasses import dataclass, field

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


@dataclass
class Family:
    """The samples of one metric, by suffix and labels."""

    kind: str
    help: str = ""
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)


class Metrics:
    """All families of one text."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Family] = {}
        assert text.endswith("\n# EOF\n"), text[-50:]
        current = ""
        for line in text.removesuffix("# EOF\n").splitlines():
            if line.startswith("# TYPE "):
                _, _, current, kind = line.split(" ")
                assert current not in self.families, line
                self.families[current] = Family(kind)
            elif line.startswith("# HELP "):
                _, _, name, rest = line.split(" ", 3)
                assert name == current, line
                self.families[current].help = rest
            elif line.startswith("# UNIT "):
                assert line == f"# UNIT {current} seconds", line
                assert current.endswith("_seconds")
            else:
                self._add(current, line)
        for name, family in self.families.items():
            assert family.help, name
            if family.kind == "histogram":
                self._check_histogram(name)

    def _add(self, name: str, line: str) -> None:
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        family = self.families[name]
        suffix = match[1].removeprefix(name)
        assert suffix in SUFFIXES[family.kind], line
        labels = tuple(sorted((key, value) for key, value in LABEL.findall(match[2] or "")))
        assert (suffix, labels) not in family.samples, line
        family.samples[suffix, labels] = float(match[3])

    def _check_histogram(self, name: str) -> None:
        samples = self.families[name].samples
        buckets = [
            (float(dict(labels)["le"]), value)
            for (suffix, labels), value in samples.items()
            if suffix == "_bucket"
        ]
        assert buckets == sorted(buckets), name
        assert [value for _, value in buckets] == sorted(value for _, value in buckets), name
        assert buckets[-1] == (float("inf"), samples["_count", ()]), name

    def value(self, name: str, suffix: str = "", **labels: str) -> float:
        """Return one sample; 0 for a counter with labels that has none yet."""
        family = self.families[f"serve_zig_{name}"]
        key = (suffix or SUFFIXES[family.kind][0], tuple(sorted(labels.items())))
        if key not in family.samples:
            assert family.kind == "counter", (name, labels)
            assert labels
            return 0.0
        return family.samples[key]

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {dict(labels)[label] for _, labels in self.families[f"serve_zig_{name}"].samples}
