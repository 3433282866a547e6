"""The mirror of a run: in a folder, at a file:// URL, and in a real S3-compatible server."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Thread

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

import results.mirror
from results.measurement import Measurement
from results.mirror import Mirror
from results.run_directory import RunDirectory
from results.store import MeasurementStore, read_measurements

CONFIG = {"model": "models/tiny", "target_length": 1024}


@dataclass(frozen=True)
class Place:
    """Where a mirror lies, with a look at what is in it that does not go through the mirror."""

    url: str
    folder: Path | None = None
    endpoint: str = ""
    bucket: str = ""

    def contents(self) -> dict[str, bytes]:
        if self.folder is not None:
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        return {
            key.removeprefix("runs/one/"): client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            for key in keys
            if not key.endswith("/")
        }


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


BUCKETS = (f"bucket-{number}" for number in count())


@pytest.fixture(params=["path", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place for a mirror that is not there yet, but for the bucket."""
    folder = tmp_path / "mirrors" / "one"
    if request.param == "path":
        return Place(str(folder), folder)
    if request.param == "file":
        return Place(folder.as_uri(), folder)
    request.getfixturevalue("aws_keys")
    endpoint, bucket = request.getfixturevalue("s3_endpoint"), next(BUCKETS)
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    override = endpoint.removeprefix("http://")
    url = f"s3://{bucket}/runs/one?endpoint_override={override}&scheme=http"
    return Place(url, None, endpoint, bucket)


def measured(number: int) -> Measurement:
    return Measurement(
        candidate="0123456789abcdef",
        document=f"document-{number}",
        split="search",
        depth=0.25,
        sum_nll=1.0,
        num_tokens=8,
        seconds=0.5,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG, resume=False)


def local_contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_place_that_can_be_written_to_is_left_as_it_was(place: Place) -> None:
    Mirror(place.url).check()
    assert place.contents() == {}


def test_every_file_of_a_run_is_copied_as_it_is(place: Place, run: RunDirectory) -> None:
    run.write_text("study.journal", "trials\n" * 10_000)
    store = MeasurementStore(run.path)
    store.add([measured(0)])
    store.flush()
    store.add([measured(1)])
    (run.path / "empty").write_text("")
    assert Mirror(place.url).sync(run.path) == 6
    assert place.contents() == local_contents(run.path)
    assert "measurements/part-00001.jsonl" in place.contents()


def test_only_what_is_new_or_changed_is_copied_again(place: Place, run: RunDirectory) -> None:
    run.write_text("status.json", "old")
    mirror = Mirror(place.url)
    assert mirror.sync(run.path) == 3
    assert mirror.sync(run.path) == 0
    run.write_text("status.json", "new")  # of the same size
    run.write_text("summary.json", "{}")
    assert mirror.sync(run.path) == 2
    assert place.contents()["status.json"] == b"new"


def test_a_journal_is_removed_when_its_part_is_there_and_nothing_else_ever(place: Place, run: RunDirectory) -> None:
    store, mirror = MeasurementStore(run.path), Mirror(place.url)
    store.add([measured(0)])
    run.write_text("notes.txt", "kept")
    mirror.sync(run.path)
    store.flush()
    store.add([measured(1)])
    (run.path / "notes.txt").unlink()
    mirror.sync(run.path)
    assert sorted(place.contents()) == [
        "config.sha256",
        "config.yaml",
        "measurements/part-00000.parquet",
        "measurements/part-00001.jsonl",
        "notes.txt",
    ]


def test_a_new_driver_sends_no_part_again_and_removes_the_journal_of_the_old(place: Place, run: RunDirectory) -> None:
    store = MeasurementStore(run.path)
    store.add([measured(0)])
    store.flush()
    store.add([measured(1)])
    Mirror(place.url).sync(run.path)
    MeasurementStore(run.path).recover()
    assert Mirror(place.url).sync(run.path) == 3  # two files of the configuration and the new part
    assert place.contents() == local_contents(run.path)


def test_hidden_files_locks_and_torn_parts_stay_behind(place: Place, run: RunDirectory) -> None:
    expected = place.contents() | local_contents(run.path)
    (run.path / "measurements").mkdir()
    for name in (
        ".status.json.1.tmp",
        "driver.lock",
        "study.journal.lock",
        "study.journal.lock1b4e.rename",
        "measurements/part-00000.parquet.torn",
        "measurements/.part-00001.parquet.1.tmp",
    ):
        (run.path / name).write_text("x")
    (run.path / ".hidden").mkdir()
    (run.path / ".hidden" / "file").write_text("x")
    (run.path / "link").symlink_to("config.yaml")
    Mirror(place.url).sync(run.path)
    assert place.contents() == expected


def test_a_run_comes_back_as_it_was_and_can_be_taken_up(place: Place, run: RunDirectory, tmp_path: Path) -> None:
    store = MeasurementStore(run.path)
    store.add([measured(0)])
    store.flush()
    store.add([measured(1)])
    run.write_text("study.journal", "trials\n")
    Mirror(place.url).sync(run.path)
    assert Mirror(place.url).fetch(tmp_path / "elsewhere" / "run") == 5
    fetched = RunDirectory.create(tmp_path / "elsewhere" / "run", CONFIG, resume=True)
    assert local_contents(fetched.path) == local_contents(run.path)
    assert MeasurementStore(fetched.path).recover() == [measured(0), measured(1)]
    Mirror(place.url).sync(fetched.path)
    assert place.contents() == local_contents(fetched.path)


def test_an_empty_or_locked_folder_is_as_good_as_a_new_one(place: Place, run: RunDirectory, tmp_path: Path) -> None:
    Mirror(place.url).sync(run.path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "driver.lock").write_text("")
    assert Mirror(place.url).fetch(tmp_path / "new") == 2
    assert RunDirectory.holds_run(tmp_path / "new")


def test_fetching_into_a_folder_with_files_is_refused(place: Place, run: RunDirectory, tmp_path: Path) -> None:
    Mirror(place.url).sync(run.path)
    with pytest.raises(FileExistsError, match=r"^folder .*run must be new or empty, got one with files in it\. Choose"):
        Mirror(place.url).fetch(run.path)


def test_fetching_from_where_no_run_is_is_refused_and_makes_nothing(place: Place, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^mirror .* must hold a run, got none\. Give the URL that the run "):
        Mirror(place.url).fetch(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_run_is_not_mixed_into_a_mirror(place: Place, run: RunDirectory, tmp_path: Path) -> None:
    Mirror(place.url).sync(run.path)
    before = place.contents()
    other = RunDirectory.create(tmp_path / "other", {**CONFIG, "target_length": 2048}, resume=False)
    with pytest.raises(FileExistsError, match=r"^mirror .* must be empty or hold this run, got one that holds another"):
        Mirror(place.url).sync(other.path)
    assert place.contents() == before


def test_a_fetch_that_fails_leaves_nothing_that_it_wrote(run: RunDirectory, tmp_path: Path) -> None:
    run.write_text("a-short-one", "first")
    run.write_text("long.json", "second " * 1000)
    Mirror(tmp_path / "mirror").sync(run.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Mirror(tmp_path / "mirror").fetch(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []
    assert Mirror(tmp_path / "mirror").fetch(tmp_path / "new") == 4


def test_a_run_may_go_on_while_it_is_copied_and_the_mirror_never_lacks_a_measurement(
    run: RunDirectory, place: Place, tmp_path: Path
) -> None:
    store, mirror = MeasurementStore(run.path, flush_seconds=0.0), Mirror(place.url)

    def add_many() -> None:
        for number in range(100):
            store.add([measured(number)])

    driver = Thread(target=add_many)
    driver.start()
    num_copied = 0
    while driver.is_alive():
        num_stored = len(read_measurements(run.path))
        mirror.sync(run.path)
        copy = tmp_path / "copies" / str(num_copied)
        Mirror(place.url).fetch(copy)
        assert len(MeasurementStore(copy).recover()) >= num_stored
        num_copied += 1
    driver.join()
    mirror.sync(run.path)
    assert place.contents() == local_contents(run.path)
    assert num_copied > 0


def test_a_journal_that_becomes_a_part_after_it_was_listed_is_in_the_mirror(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, mirror = MeasurementStore(run.path), Mirror(tmp_path / "mirror")
    store.add([measured(0)])
    listed = results.mirror._files_of

    def list_and_then_flush(folder: Path, pattern: str) -> list[tuple[str, Path]]:
        names = listed(folder, pattern)
        store.flush()
        return names

    monkeypatch.setattr(results.mirror, "_files_of", list_and_then_flush)
    mirror.sync(run.path)
    Mirror(tmp_path / "mirror").fetch(tmp_path / "copy")
    assert len(MeasurementStore(tmp_path / "copy").recover()) == 1


def test_a_folder_that_is_no_run_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileNotFoundError, match=r"config\.sha256"):
        Mirror(tmp_path / "mirror").sync(tmp_path)


def test_a_mirror_in_the_way_of_a_file_is_an_error_of_one_line(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "config.yaml").mkdir(parents=True)
    with pytest.raises(OSError, match=r"^mirror .*mirror must take config\.yaml, got: Is a directory$"):
        Mirror(tmp_path / "mirror").sync(run.path)


def test_a_copy_that_failed_is_tried_again(run: RunDirectory, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "mirror")
    (tmp_path / "mirror").write_text("in the way")
    with pytest.raises(OSError, match=r"^mirror .* must (be listed|take config\.sha256), got: .*$"):
        mirror.sync(run.path)
    (tmp_path / "mirror").unlink()
    assert mirror.sync(run.path) == 2


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://me:secret@host/runs", r"ftp://me:\*\*\*@host/runs: Unrecognized filesystem type in URI: ftp://me:\*\*"),
        ("s3://AKIA0:secret@bucket/runs?colour=red", r"s3://AKIA0:\*\*\*@bucket/runs\?colour=red: Unexpected query "),
        ("file://relative/runs", r"file://relative/runs: Unsupported hostname"),
    ],
)
def test_a_url_that_no_file_system_takes_is_refused_without_its_password(url: str, shown: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^a mirror must be a folder or a URL that Arrow's file systems take, got {shown}.*\. Correct",
    ) as refused:
        Mirror(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ValueError, match=r"^mirror .*file/runs must be a place that can be written to, got: Not a directory\. Correct"
    ):
        Mirror(tmp_path / "file" / "runs").check()


@pytest.mark.usefixtures("aws_keys")
def test_a_bucket_that_is_missing_is_refused_without_the_password(s3_endpoint: str) -> None:
    address = s3_endpoint.removeprefix("http://")
    mirror = Mirror(f"s3://AKIA0:se-cret@no-such-bucket/runs?endpoint_override={address}&scheme=http")
    with pytest.raises(
        ValueError, match=r"^mirror s3://AKIA0:\*\*\*@no-such-bucket/runs\?.* can be written to, got: .*NO_SUCH_BUCKET"
    ) as refused:
        mirror.check()
    assert "se-cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("aws_keys")
def test_a_server_that_went_away_is_an_error_and_the_next_copy_makes_up_for_it(run: RunDirectory) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    mirror = Mirror(f"s3://bucket/runs/one?endpoint_override={host}:{port}&scheme=http")
    mirror.check()
    server.stop()
    with pytest.raises(OSError, match=r"^mirror s3://bucket/runs/one\?.* must be listed, got: .*$"):
        mirror.sync(run.path)
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    again.start()
    client.create_bucket(Bucket="bucket")
    try:
        assert mirror.sync(run.path) == 2
    finally:
        again.stop()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "read-only").mkdir(mode=0o555)
    with pytest.raises(ValueError, match=r"can be written to, got: Permission denied\. Correct --mirror\.$"):
        Mirror(tmp_path / "read-only").check()


def test_a_mirror_says_whether_it_holds_a_run(place: Place, run: RunDirectory) -> None:
    mirror = Mirror(place.url)
    assert not mirror.holds_run()
    mirror.sync(run.path)
    assert Mirror(place.url).holds_run()
