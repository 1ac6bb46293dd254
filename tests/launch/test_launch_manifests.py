"""The JobSet against the schemas of what it is made of, and against what a TPU slice needs.

The schemas are the parts of JobSet v1alpha2, batch/v1 and core/v1 that a manifest of ours can use,
written from the public API reference. Nothing else is allowed: a misspelt field fails.
"""

import re
import shlex

import jsonschema
import pytest
import yaml

NAME = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # labels: "true" must be quoted


def fields(*required, **known):
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema):
    return {"type": "array", "items": schema, "minItems": 1}


def one_of(*values):
    return {"enum": list(values)}


RESOURCES = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
CONTAINER = fields(
    "name", "image",
    name=NAME,
    image=TEXT,
    command=items(TEXT),
    args=items(TEXT),
    env=items(fields("name", name=TEXT, value=TEXT)),
    ports=items(fields("containerPort", containerPort={"type": "integer", "maximum": 65535})),
    securityContext=fields(privileged={"type": "boolean"}, runAsUser=COUNT),
    resources=fields(requests=RESOURCES, limits=RESOURCES),
    volumeMounts=items(fields("name", "mountPath", name=NAME, mountPath=TEXT)),
)  # fmt: skip
VOLUME = fields(
    "name",
    name=NAME,
    persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly={"type": "boolean"}),
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=TEXT),
)
POD = fields(
    "containers",
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    terminationGracePeriodSeconds=COUNT,
    hostNetwork={"type": "boolean"},
    dnsPolicy=one_of("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    nodeSelector=TEXTS,
    containers=items(CONTAINER),
    volumes=items(VOLUME),
)
EXIT_CODES = fields(
    "operator", "values",
    containerName=NAME,
    operator=one_of("In", "NotIn"),
    values=items({"type": "integer"}),
)  # fmt: skip
JOB = fields(
    "template",
    completionMode=one_of("NonIndexed", "Indexed"),
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit=COUNT,
    podFailurePolicy=fields(
        "rules",
        rules=items(
            fields(
                "action",
                action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
                onExitCodes=EXIT_CODES,
            )
        ),
    ),
    template=fields("spec", metadata=fields(labels=TEXTS, annotations=TEXTS), spec=POD),
)
REASONS = one_of(
    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
)  # fmt: skip
ACTION = one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
JOBSET = fields(
    "apiVersion", "kind", "metadata", "spec",
    apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
    kind=one_of("JobSet"),
    metadata=fields("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "replicatedJobs",
        ttlSecondsAfterFinished=COUNT,
        failurePolicy=fields(
            maxRestarts=COUNT,
            rules=items(
                fields(
                    "name", "action",
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action=ACTION,
                    onJobFailureReasons=items(REASONS),
                    targetReplicatedJobs=items(NAME),
                )
            ),
        ),
        replicatedJobs=items(
            fields("name", "template", name=NAME, replicas=COUNT, template=fields("spec", spec=JOB))
        ),
    ),
)  # fmt: skip

VERB = [
    "run",
    "--config=a\\b.py",
    '--workdir=/mnt/share/it\'s "a" & b',
    "$(HOME) $x @NAME@",
    "a\n\tb",
]


@pytest.fixture
def manifest(launch):
    """Renders; returns (kubectl's words, the JobSet)."""

    def render(*flags):
        done = launch.call(
            "gke.sh", "--name=llama-8b", "--image=registry/p/ideal:1", "--claim=share", *flags,
            "--dry-run", "--", *VERB,
        )  # fmt: skip
        assert (done.status, done.stderr) == (0, "")
        command, text = re.fullmatch(
            r"(.*) <<'MANIFEST'\n(.*)\nMANIFEST\n", done.stdout, re.S
        ).groups()
        return shlex.split(command), yaml.safe_load(text)

    return render


@pytest.mark.parametrize(
    ("flags", "slices", "hosts", "chips", "selector"),
    [
        (["--topology=v6e:4x4"], 1, 4, 4, ["tpu-v6e-slice", "4x4"]),
        (["--topology=v5e:1x1"], 1, 1, 1, ["tpu-v5-lite-podslice", "1x1"]),
        (["--topology=v5e:2x2"], 1, 1, 4, ["tpu-v5-lite-podslice", "2x2"]),
        (["--topology=3*v5p:4x4x8"], 3, 32, 4, ["tpu-v5p-slice", "4x4x8"]),
        (["--topology=v4:2x2x2", "--capacity=spot"], 1, 2, 4, ["tpu-v4-podslice", "2x2x2", "true"]),
    ],
)
def test_the_jobset_is_one_and_asks_for_the_slices(manifest, flags, slices, hosts, chips, selector):
    command, jobset = manifest(*flags)
    assert command == ["kubectl", "apply", "--filename=-"]
    jsonschema.validate(jobset, JOBSET)
    assert jobset["metadata"]["name"] == "llama-8b"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    pod = spec["template"]["spec"]
    assert list(pod["nodeSelector"].values()) == selector
    (container,) = pod["containers"]
    assert container["image"] == "registry/p/ideal:1"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {"google.com/tpu": str(chips)}


def test_the_words_arrive_as_they_were(manifest):
    _, jobset = manifest("--topology=v6e:4x4")
    arguments = only_pod(jobset)["containers"][0]["args"]
    # Kubernetes replaces $(NAME) by a variable, and $$ by $.
    assert [word.replace("$$", "$") for word in arguments] == VERB
    assert all("$(" not in word.replace("$$", "") for word in arguments)


def test_what_names_each_other_fits(manifest):
    command, jobset = manifest("--topology=v6e:4x4", "--namespace=team")
    assert command == ["kubectl", "apply", "--namespace=team", "--filename=-"]
    spec, pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"], only_pod(jobset)
    (container,) = pod["containers"]
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
    # What batch/v1 demands of a pod failure policy, and JobSet of its reaction to it.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [2]
    assert pod["restartPolicy"] == "Never"
    assert spec["completionMode"] == "Indexed"
    (reaction,) = jobset["spec"]["failurePolicy"]["rules"]
    assert reaction["action"] == "FailJobSet"
    assert reaction["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_kubectl_gets_the_manifest(launch):
    launch.add("kubectl", '#!/bin/sh\necho "$@"; exec cat\n')
    flags = ["--name=n", "--image=i", "--topology=v6e:4x4", "--claim=c"]
    done = launch.call("gke.sh", *flags, *VERB)
    command, text = done.stdout.split("\n", 1)
    assert command == "apply --filename=-"
    jsonschema.validate(yaml.safe_load(text), JOBSET)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("parallelism:", "paralelism:"), ('"true"', "true"), ("[2]", '["2"]'), ("Never", "never")],
)
def test_the_schema_notices(launch, right, wrong):
    text = (launch.root / "launch" / "gke_jobset.yaml").read_text()
    assert right in text
    for name in ("SLICES", "HOSTS", "CHIPS"):
        text = text.replace(f"@{name}@", "1").replace(right, wrong)
    for name in ("NAME", "IMAGE", "CLAIM", "ACCELERATOR", "SHAPE"):
        text = text.replace(f"@{name}@", "x")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace("@ARGUMENTS@", "[run]")), JOBSET)


def only_pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


# The image ----------------------------------------------------------------------------------------


def test_the_image_copies_what_there_is_and_what_the_ignore_file_lets_through(launch):
    dockerfile = (launch.root / "launch" / "Dockerfile").read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (.*)$", dockerfile, re.M)
        for source in line.split()[:-1]
    }
    ignore = (launch.root / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore
    assert all((launch.root / source).exists() for source in copied)
    project = (launch.root / "pyproject.toml").read_text()
    for extra in re.search(r"(\w+) \| (\w+)\) pip", dockerfile).groups():
        assert f"\n{extra} = [" in project
    user, entry = (
        dockerfile.index("\nARG RUN_AS=ideal\nUSER $RUN_AS\n"),
        dockerfile.index("\nENTRYPOINT"),
    )
    assert user < entry
