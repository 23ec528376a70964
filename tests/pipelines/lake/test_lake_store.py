"""A folder, a bucket and a dictionary keep one contract: what a lake asks of its store."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.runtime.beneath import RefusedFileError
from pipelines.errors import BadReferenceError, ConflictError
from pipelines.lake.bucket_store import LOOKS_PER_LISTING, BucketStore
from pipelines.lake.lake import Lake, poll_again, polled
from pipelines.lake.layout import OBJECTS
from pipelines.lake.remote import Remote
from pipelines.lake.store import NEW, LocalStore, Store
from tests.fakes.memory_store import MemoryStore
from tests.fakes.s3_server import S3, served

MakeStore = Callable[[], Store]
NAMES = st.sampled_from(["runs/1.json", "runs/2.json", "runs/pins/a", "objects/a", "streams/x/1.parquet"])


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with served(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module", params=["folder", "bucket", "memory"])
def make_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    numbers = itertools.count()

    def make() -> Store:
        folder = tmp_path_factory.mktemp("store")
        if request.param == "folder":
            return LocalStore(folder)
        if request.param == "memory":
            return MemoryStore(folder)
        server: S3 = request.getfixturevalue("s3")
        return BucketStore(folder, Remote(server.config(f"store-{next(numbers)}")))

    return make


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def test_bytes_are_read_as_they_were_put(store: Store) -> None:
    store.put("runs/1.json", b"one")
    store.put("runs/1.json", b"two")
    assert (store.read("runs/1.json"), store.size("runs/1.json")) == (b"two", 3)


def test_a_file_that_is_not_there_has_no_size_no_tag_and_no_bytes(store: Store) -> None:
    assert (store.size("runs/1.json"), store.read_tagged("runs/1.json")) == (None, None)
    with pytest.raises(FileNotFoundError):
        store.read("runs/1.json")
    assert not store.local("runs/1.json").exists()
    assert not store.fetch("runs/1.json", store.folder / "elsewhere")


def test_a_part_of_a_file_is_read_alone(store: Store) -> None:
    store.put("payload/a", b"0123456789")
    assert store.read_part("payload/a", 3, 4) == b"3456"
    with pytest.raises(FileNotFoundError):
        store.read_part("payload/b", 0, 1)


def test_a_taken_name_is_refused_to_other_bytes(store: Store) -> None:
    store.create("runs/1.json", b"mine")
    with pytest.raises(ConflictError):
        store.create("runs/1.json", b"yours")
    assert store.read("runs/1.json") == b"mine"


def test_a_file_is_created_from_a_file_too(store: Store, tmp_path: Path) -> None:
    (tmp_path / "sealed").write_bytes(b"segment")
    store.create("landing/bridge/1.arrows", tmp_path / "sealed")
    assert store.read("landing/bridge/1.arrows") == b"segment"
    assert (tmp_path / "sealed").exists()


def test_of_many_creators_one_succeeds(store: Store) -> None:
    refused: list[int] = []

    def create(number: int) -> None:
        try:
            store.create("runs/1.json", f"{number}".encode())
        except ConflictError:
            refused.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {int(store.read("runs/1.json")), *refused} == set(range(8))
    assert len(refused) == 7


def test_a_replacement_needs_the_tag_of_what_is_there(store: Store) -> None:
    store.replace("runs/claim", b"first", NEW)
    found = store.read_tagged("runs/claim")
    assert found is not None
    second = store.replace("runs/claim", b"second", found[1])
    for outdated in (NEW, found[1]):
        with pytest.raises(ConflictError):
            store.replace("runs/claim", b"third", outdated)
    assert store.read("runs/claim") == b"second"
    store.replace("runs/claim", b"third", second)
    assert store.read("runs/claim") == b"third"


def test_of_many_replacements_of_one_tag_one_succeeds(store: Store) -> None:
    store.put("runs/claim", b"start")
    found = store.read_tagged("runs/claim")
    assert found is not None
    succeeded: list[int] = []

    def replace(number: int) -> None:
        try:
            store.replace("runs/claim", f"{number}".encode(), found[1])
        except ConflictError:
            return
        succeeded.append(number)

    threads = [threading.Thread(target=replace, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert succeeded == [int(store.read("runs/claim"))]


def test_deleted_files_are_gone_here_too_and_missing_ones_no_error(store: Store) -> None:
    for name in ("runs/1.json", "runs/2.json"):
        store.put(name, b"x")
        store.local(name)
    store.delete(["runs/1.json", "runs/3.json", "runs/2.json"])
    assert store.files("runs") == []
    assert not store.local("runs/1.json").exists()


def test_a_listing_names_every_file_below_a_folder_in_order_and_those_after_a_name(store: Store) -> None:
    for name in ("runs/2.json", "runs/1.json", "runs/pins/a", "runs1/other"):
        store.put(name, b"123")
    assert [(file.name, file.bytes) for file in store.files("runs")] == [
        ("runs/1.json", 3),
        ("runs/2.json", 3),
        ("runs/pins/a", 3),
    ]
    assert [file.name for file in store.files("runs", "runs/1.json")] == ["runs/2.json", "runs/pins/a"]
    assert store.files("nothing") == []


def test_folders_are_named_without_files_beside_them(store: Store) -> None:
    for name in ("streams/b/1", "streams/a/1", "streams/a/2", "streams/c"):
        store.put(name, b"")
    assert store.folders("streams") == ["a", "b"]
    assert store.folders("nothing") == []


def test_a_second_name_has_the_bytes_and_takes_nobodys_place(store: Store) -> None:
    store.put("payload/a", b"a")
    store.put("payload/taken", b"other")
    store.copy("payload/a", "payload/new")
    store.copy("payload/a", "payload/taken")
    assert (store.read("payload/new"), store.read("payload/taken")) == (b"a", b"other")
    store.delete(["payload/a"])
    assert store.read("payload/new") == b"a"
    with pytest.raises(FileNotFoundError):
        store.copy("payload/gone", "payload/third")


def test_an_uploaded_file_is_read_back_after_its_copy_was_evicted(store: Store) -> None:
    path = store.folder / "streams/x/1.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rows")
    store.upload(["streams/x/1.parquet"])
    store.evict(["streams/x/1.parquet"])
    assert store.local("streams/x/1.parquet").read_bytes() == store.read("streams/x/1.parquet") == b"rows"


def test_a_fetched_file_lies_where_it_was_wanted(store: Store, tmp_path: Path) -> None:
    store.put("objects/a", b"object")
    assert store.fetch("objects/a", tmp_path / "deep" / "a")
    assert (tmp_path / "deep" / "a").read_bytes() == b"object"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


ACTS = st.lists(st.tuples(st.sampled_from(["put", "create", "delete", "replace", "copy", "evict"]), NAMES, st.binary(max_size=3)))


@given(acts=ACTS)
@settings(max_examples=20)
def test_any_order_of_acts_leaves_what_a_dictionary_would(make_store: MakeStore, acts: list[tuple[str, str, bytes]]) -> None:
    store, model = make_store(), dict[str, bytes]()
    for act, name, body in acts:
        perform(store, model, act, name, body)
    for name in {name for _, name, _ in acts}:
        found = store.read_tagged(name)
        assert (None if found is None else found[0]) == model.get(name)
        assert store.size(name) == (len(model[name]) if name in model else None)
    folders = {name.split("/")[0] for name in model}
    assert {file.name for folder in folders for file in store.files(folder)} == set(model)


def perform(store: Store, model: dict[str, bytes], act: str, name: str, body: bytes) -> None:
    """Do it to both."""
    match act:
        case "put":
            store.put(name, body)
            model[name] = body
        case "create" if name not in model:
            store.create(name, body)
            model[name] = body
        case "delete":
            store.delete([name])
            model.pop(name, None)
        case "replace":
            found = store.read_tagged(name)
            store.replace(name, body, NEW if found is None else found[1])
            model[name] = body
        case "copy" if name in model:
            store.copy(name, f"{name}-2")
            model.setdefault(f"{name}-2", model[name])
        case "evict":
            store.evict([name])


def test_a_link_in_a_folder_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/link").symlink_to("/etc/hostname")
    with pytest.raises(BadReferenceError, match="a link in the lake"):
        LocalStore(tmp_path).files("runs")


def test_objects_of_another_lake_are_read_through_and_nothing_else(store: Store, tmp_path: Path) -> None:
    store.put(f"{OBJECTS}/a", b"object")
    store.put("runs/1.json", b"plan")
    small = LocalStore(tmp_path, objects=store)
    assert small.local(f"{OBJECTS}/a").read_bytes() == b"object"
    assert not small.local(f"{OBJECTS}/b").exists()
    assert not small.local("runs/1.json").exists()


def test_a_bucket_is_listed_at_every_hundredth_look_only_and_whenever_that_is_wanted(s3: S3, tmp_path: Path) -> None:
    lake = Lake(BucketStore(tmp_path, Remote(s3.config("known"))))

    def look() -> list[str]:
        return polled(lake, "landing", lambda: lake.folders("landing"))

    lake.store.put("landing/one/1", b"")
    assert look() == ["one"]
    lake.store.put("landing/two/1", b"")
    assert {tuple(look()) for _ in range(LOOKS_PER_LISTING - 1)} == {("one",)}
    assert look() == ["one", "two"]
    lake.store.put("landing/three/1", b"")
    poll_again(lake, "landing")
    assert look() == ["one", "three", "two"]


def test_a_file_that_was_fetched_is_read_here(store: Store) -> None:
    store.put("objects/a", b"body")
    store.local("objects/a")
    assert store.has_local("objects/a")


def test_only_copies_are_files_that_merely_take_room(store: Store) -> None:
    store.put("objects/a", b"body")
    store.local("objects/a")
    expected = [] if isinstance(store, LocalStore) else ["objects/a"]
    assert store.copies("objects", "[0-9a-f]*") == expected
    store.evict(store.copies("objects", "*"))
    assert store.read("objects/a") == b"body"
    assert store.copies("objects", "*") == []


def test_what_is_published_is_found_by_others_unless_they_see_the_folder(store: Store) -> None:
    store.publish("heartbeats/run.json", b"well")
    expected = [] if isinstance(store, LocalStore) else ["heartbeats/run.json"]
    assert [file.name for file in store.published("heartbeats")] == expected


def test_a_stamp_of_a_table_changes_when_its_log_does(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.table_stamp("streams/x") is None
    store.prepare_table("streams/x")
    (tmp_path / "streams/x/_delta_log").mkdir()
    before = store.table_stamp("streams/x")
    os.utime(tmp_path / "streams/x/_delta_log", ns=(1, 1))
    assert before != store.table_stamp("streams/x")


def test_a_folder_whose_files_are_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "streams/x").mkdir(parents=True)
    (tmp_path / "streams/x/a.parquet").write_bytes(b"a")
    (tmp_path / "streams/x/b.parquet").symlink_to("a.parquet")
    store = LocalStore(tmp_path)
    store.check_plain("streams/x", ["a.parquet", "gone.parquet"])
    with pytest.raises(RefusedFileError, match=r"b\.parquet"):
        store.check_plain("streams/x", ["a.parquet", "b.parquet"])
