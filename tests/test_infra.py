"""Manifests that a cluster would refuse, or that would fail there for want of a file, a name or a secret, fail here."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.shared import shared_path

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
KUBERAY = sorted((INFRA / "kuberay").glob("*.yaml"))
COMPOSE = INFRA / "compose" / "compose.yaml"
DOCKERFILE = (INFRA / "images" / "Dockerfile").read_text(encoding="utf-8")
CLUSTER_LOCK = (INFRA / "images" / "cluster.lock").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def _load(path):
    (document,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return document


def _manifest(name):
    return _load(INFRA / "kuberay" / name)


def _validator(kind):
    jsonschema = pytest.importorskip("jsonschema")
    path = shared_path(f"schemas/ray.io_v1_{kind}.schema.json.gz")
    schema = json.loads(gzip.decompress(path.read_bytes()))
    return jsonschema.Draft7Validator(schema)


def _versions(lock):
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_manifests_hold_to_their_schema(path):
    document = _load(path)
    if document["apiVersion"] == "ray.io/v1":
        errors = [f"{error.json_path}: {error.message}" for error in _validator(document["kind"]).iter_errors(document)]
        assert errors == []
    else:
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_field_would_be_seen():
    document = _manifest("rayjob.yaml")
    document["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    assert not _validator("RayJob").is_valid(document)
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    document = _manifest("cronjob.yaml")
    document["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "raycronjob.yaml"])
def test_pods_of_ray_clusters_are_pods(name):
    """KubeRay's schema leaves parts of a pod open; Kubernetes' own does not."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    spec = _cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        (container,) = pod["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def _cluster_spec(name):
    spec = _manifest(name)["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def test_every_way_to_run_uses_the_same_cluster():
    specs = [_cluster_spec(name) for name in ("raycluster.yaml", "rayjob.yaml", "raycronjob.yaml")]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0]["rayVersion"] == _versions(LOCK)["ray"]


def _onboard_commands():
    container = _manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    command = container["command"]
    compose = _load(COMPOSE)["services"]["onboard"]["command"][-1]
    return {
        "rayjob": shlex.split(_manifest("rayjob.yaml")["spec"]["entrypoint"]),
        "raycronjob": shlex.split(_manifest("raycronjob.yaml")["spec"]["jobTemplate"]["entrypoint"]),
        "cronjob": command[command.index("--") + 1 :],
        "compose": shlex.split(
            compose[compose.index("gsv onboard") :].replace("\\\n", " ").replace("$$GSV_BASE", "nano")
        ),
    }


@pytest.mark.parametrize("place", ["rayjob", "raycronjob", "cronjob", "compose"])
def test_the_job_is_gsv_onboard(place):
    verb, options = _onboard_commands()[place][:3], _onboard_commands()[place][3:]
    assert verb == ["gsv", "onboard", "/data/recordings"]
    values = dict(zip(options[::2], options[1::2], strict=True))
    assert values.pop("--ray-address") in ("auto", "ray-head:6379")
    assert values == {"--workspace": "/data/workspace", "--base": "nano", "--tracking-uri": "http://mlflow:5000"}


def test_nightly_runs_do_not_overlap():
    """RayCronJob has no concurrencyPolicy; its deadline has to end a run before the next day's."""
    assert _manifest("raycronjob.yaml")["spec"]["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600
    cron = _manifest("cronjob.yaml")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_names_meet_across_manifests():
    (claim,) = {
        volume["persistentVolumeClaim"]["claimName"]
        for group in (_cluster_spec("rayjob.yaml")["headGroupSpec"], *_cluster_spec("rayjob.yaml")["workerGroupSpecs"])
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claim == _manifest("data.yaml")["metadata"]["name"]
    container = _manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    service = f"{_manifest('raycluster.yaml')['metadata']['name']}-head-svc"  # how KubeRay names it
    assert f"--address=http://{service}:8265" in container["command"]
    (token,) = [entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["name"] == _cluster_spec("raycluster.yaml")["authOptions"]["secretName"]
    readme = (INFRA / "README.md").read_text(encoding="utf-8")
    assert f"kubectl create secret generic {token['valueFrom']['secretKeyRef']['name']} " in readme


def test_the_image_can_answer_kuberay():
    """Its probes and its submitter need Ray's dashboard agent, which plain ray leaves out, and wget."""
    assert {"aiohttp-cors", "opencensus", "virtualenv"} <= set(_versions(CLUSTER_LOCK))
    assert re.search(r"apt-get install [^\n]*\bwget\b", DOCKERFILE)


def test_the_two_locks_agree():
    """Lock again, as cluster.in says, after requirements.lock has changed."""
    base, cluster = _versions(LOCK), _versions(CLUSTER_LOCK)
    assert {name: version for name, version in cluster.items() if base.get(name, version) != version} == {}
    assert cluster["ray"] == base["ray"]
    assert "://" not in CLUSTER_LOCK


def test_dockerfile_copies_what_is_there():
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = [source for line in copied for source in line]
    assert sources
    ignored = (INFRA / "images" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for source in sources:
        assert (ROOT / source).exists(), f"COPY {source}: no such file"
        assert f"!{source}" in ignored, f"COPY {source}: left out by .dockerignore"
    packages = yaml.safe_load(re.search(r"include = (\[.*\])", (ROOT / "pyproject.toml").read_text()).group(1))
    assert {package.rstrip("*") for package in packages} <= set(sources)


def test_dockerfile_targets_users_and_versions():
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "gpu"} <= {name for _, name in stages}
    bases = {name: image for image, name in stages}
    assert bases["cpu"] == bases["gpu"]
    assert re.search(r"^USER 1000:1000$", DOCKERFILE, re.MULTILINE)
    assert f"uv=={_versions(LOCK)['uv']}" in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE


def test_no_address_of_an_index_anywhere():
    for path in INFRA.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"--(extra-)?index-url|--find-links|/simple\b|_INDEX(_URL)?=", text), path.name


def test_compose_names_resolve():
    compose = _load(COMPOSE)
    services = compose["services"]
    assert set(services) == {"ray-head", "ray-worker", "onboard", "mlflow", "postgres"}
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other], f"{name} waits for {other}, which says nothing of its health"
        for volume in service["volumes"]:
            assert volume["type"] == "bind" or volume["source"] in compose["volumes"]
        assert set(service["networks"]) <= set(compose["networks"])
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} would listen to everybody"
    assert services["onboard"]["profiles"] == ["job"]


def test_compose_builds_the_dockerfile():
    build = _load(COMPOSE)["x-gsv"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).exists()
    assert re.search(rf"AS {build['target'].rpartition('-')[2].rstrip('}')}$", DOCKERFILE, re.MULTILINE)


def test_compose_secrets_are_required_and_never_written_down():
    text = COMPOSE.read_text(encoding="utf-8")
    names = ("POSTGRES_PASSWORD", "RAY_AUTH_TOKEN", "RECORDINGS")
    for name in names:
        uses = re.findall(r"\$\{" + name + r"([^}]*)\}", text)
        assert uses
        assert all(use.startswith(":?") and len(use) > 10 for use in uses), f"{name} would be empty in silence"
    example = (COMPOSE.parent / ".env.example").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf"^{name}=$", example, re.MULTILINE)
    optional = set(re.findall(r"\$\{(\w+):-", text))
    assert optional == set(re.findall(r"^# (\w+)=", example, re.MULTILINE))
    assert (COMPOSE.parent / ".gitignore").read_text().split() == [".env"]


def test_mlflow_takes_requests_by_its_service_name():
    service = _load(COMPOSE)["services"]["mlflow"]
    command = shlex.split(service["command"])
    allowed = command[command.index("--allowed-hosts") + 1].split(",")
    security = pytest.importorskip("mlflow.server.security_utils")
    assert security.is_allowed_host_header(allowed, "mlflow:5000")
    assert security.is_allowed_host_header(allowed, "localhost:5000")
    assert not security.is_allowed_host_header(allowed, "attacker.example")
    assert service["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://")
    assert service["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_flags_exist_in_the_locked_versions():
    """Every long option the compose file gives to ray and mlflow is one they know."""
    from click.testing import CliRunner
    from mlflow.cli import cli as mlflow_cli
    from ray.scripts.scripts import cli as ray_cli

    services = _load(COMPOSE)["services"]
    joined = re.findall(r"ray start [^\n]*", services["onboard"]["command"][-1])
    started = {
        ("ray", "start"): [services["ray-head"]["command"], services["ray-worker"]["command"], *joined],
        ("ray", "health-check"): [" ".join(services["ray-head"]["healthcheck"]["test"])],
        ("mlflow", "server"): [services["mlflow"]["command"]],
    }
    for (program, verb), commands in started.items():
        cli = ray_cli if program == "ray" else mlflow_cli
        known = CliRunner().invoke(cli, [verb, "--help"]).output
        options = {flag for command in commands for flag in re.findall(r"--[a-z-]+", command)}
        assert options
        for flag in options:
            assert re.search(rf"{flag}\b", known), f"{program} {verb} knows no {flag}"


def test_compose_config_where_there_is_a_client(tmp_path):
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose on this machine")
    environment = tmp_path / "env"
    environment.write_text("RECORDINGS=/tmp\nPOSTGRES_PASSWORD=a\nRAY_AUTH_TOKEN=b\n")
    for files in (["compose.yaml"], ["compose.yaml", "gpu.yaml"]):
        given = [part for name in files for part in ("-f", str(COMPOSE.with_name(name)))]
        command = [docker, "compose", "--env-file", str(environment), *given, "--profile", "job", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
