"""Random numbers of functions: distinct for each item, the same for every n_jobs."""

import importlib
import random
import sys
import types

import numpy as np
import pytest

from sharedmask import FrameDataset, SharedImage, batch_process
from sharedmask.errors import ParameterError
from sharedmask.workers import pool, threaded
from sharedmask.workers.streams import ItemStreams, Streams

N_ITEMS = 6
JOBS = [1, 2, 3]


def draw(_):
    return np.random.rand(), random.random()


def of_map(image, function, **options):
    masks = [np.ones((2, 3, 4), bool)] * N_ITEMS
    with SharedImage(image) as shared:
        return shared.map(function, masks, **options)


def of_cleaned(image, function, **options):
    return of_map(image, function, detrend=True, **options)


def of_frames(image, function, **options):
    with FrameDataset(image) as frames:
        return frames.map(function, **options)[:N_ITEMS]


def of_batches(image, function, **options):
    names = {str(i): i for i in range(N_ITEMS)}
    return list(batch_process(names, function, batch_size=2, **options).results.values())


calls = pytest.mark.parametrize("call", [of_map, of_cleaned, of_frames, of_batches])


@pytest.fixture
def image(tmp_path):
    import nibabel as nib

    path = tmp_path / "run.nii"
    nib.save(nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4)), path)
    return path


@pytest.mark.some(4)
@calls
@pytest.mark.parametrize("n_jobs", JOBS)
def test_no_two_items_share_a_stream(image, call, n_jobs):
    found = [value for one in (call(image, draw, n_jobs=n_jobs) for _ in range(3)) for value in one]
    assert len({one for one, _ in found}) == len({one for _, one in found}) == 3 * N_ITEMS


@pytest.mark.parametrize("repeats", [10, pytest.param(1000, marks=pytest.mark.long)])
def test_no_two_of_many_items_share_a_stream_whoever_works_on_them(repeats):
    def drawn(n_jobs, random_state=None):
        run = pool.run_processes if n_jobs > 1 else threaded.run_threads
        with Streams(draw, random_state) as streams:
            return run(draw, (), [(item,) for item in range(64)], n_jobs, streams=streams)

    found = [pair for _ in range(repeats) for pair in drawn(8)]
    assert [len(set(ones)) for ones in zip(*found, strict=True)] == [64 * repeats] * 2
    assert drawn(1, 0) == drawn(2, 0) == drawn(8, 0)


@pytest.mark.parametrize("places", [[5, 90, 6, 0, 91, 3], range(99, -1, -1)])
def test_items_have_the_same_numbers_in_any_order(places):
    rng = np.random.RandomState(3)

    def drawn(numbers):
        streams = ItemStreams({"numpy": (7, "numpy"), "random": (7, "random"), 0: (7, 0)}, [rng])
        found = {}
        for number in numbers:
            with streams.item(number, set()):
                found[number] = *draw(number), rng.randn(), np.random.randn(), random.gauss(0, 1)
        return found

    assert drawn(places) == {number: drawn(range(100))[number] for number in places}


class Counting(random.Random):
    """What it gives hangs on nothing that its base has."""

    def seed(self, *given):
        self.number = int(given[0]) % 1000 if given and given[0] is not None else 0

    def random(self):
        self.number += 1
        return float(self.number)

    def getrandbits(self, count):
        return int(self.random()) % 2**count

    def getstate(self):
        return self.number

    def setstate(self, state):
        self.number = state


def test_a_generator_of_the_users_own_kind_moves_on(image):
    def held(n_jobs):
        rng = Counting(0)
        return [of_map(image, lambda _: rng.random(), n_jobs=n_jobs) for _ in range(2)], rng.random()

    assert held(1) == held(2)
    assert held(1)[1] > 1


@pytest.mark.some(2)
@calls
def test_a_seeded_caller_has_the_same_for_every_n_jobs(image, call):
    def seeded(n_jobs):
        np.random.seed(0)
        random.seed(0)
        first, second = call(image, draw, n_jobs=n_jobs), call(image, draw, n_jobs=n_jobs)
        return first, second, np.random.rand(), random.random()

    found = [seeded(n_jobs) for n_jobs in JOBS]
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][1]


@pytest.mark.some(4)
@calls
@pytest.mark.parametrize("seed", [0, [1, 2], np.random.SeedSequence(5)])
def test_random_state_gives_the_same_for_every_n_jobs(image, call, seed):
    found = [call(image, draw, n_jobs=n_jobs, random_state=seed) for n_jobs in (*JOBS, 1)]
    assert all(one == found[0] for one in found)
    assert len(set(found[0])) == N_ITEMS
    assert found[0] != call(image, draw, n_jobs=1, random_state=7)


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_random_state_may_be_a_generator_which_moves_on(image, make):
    one, other = make(0), make(0)
    first = of_map(image, draw, n_jobs=2, random_state=one), of_map(image, draw, n_jobs=2, random_state=one)
    assert first[0] != first[1]
    again = of_map(image, draw, random_state=other), of_map(image, draw, n_jobs=3, random_state=other)
    assert first == again


@pytest.mark.some(4)
@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, random.Random])
@calls
def test_a_generator_that_the_function_holds(image, call, make):
    def held(n_jobs):
        rng = make(0)
        first, second = (call(image, lambda _: rng.random(), n_jobs=n_jobs) for _ in range(2))
        return first, second, rng.random()

    found = [held(n_jobs) for n_jobs in JOBS]
    assert found[0] == found[1] == found[2]
    assert len({*found[0][0], *found[0][1]}) == 2 * N_ITEMS


@pytest.mark.some(1)
@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox, np.random.MT19937])
def test_kinds_of_bit_generators(image, bits):
    def held(n_jobs, make):
        rng = make(bits(3))
        return of_map(image, lambda _: rng.normal(), n_jobs=n_jobs), rng.normal()

    for make in (np.random.Generator, np.random.RandomState):
        assert held(1, make) == held(2, make)


@pytest.mark.some(4)
@calls
@pytest.mark.parametrize("n_jobs", JOBS)
def test_a_function_that_draws_nothing_leaves_the_callers_generators(image, call, n_jobs):
    np.random.seed(0)
    random.seed(0)
    np.random.randn()  # half of a pair: the other half waits
    expected = np.random.RandomState(0)
    expected.randn()
    call(image, lambda _: None, n_jobs=n_jobs)
    call(image, draw, n_jobs=n_jobs, random_state=3)
    assert np.random.randn() == expected.randn()
    assert random.random() == random.Random(0).random()


@pytest.mark.parametrize("n_jobs", JOBS)
def test_callbacks_find_the_callers_generators(image, n_jobs):
    found = []
    np.random.seed(0)
    of_map(image, lambda _: None, n_jobs=n_jobs, on_result=lambda *_: found.append(np.random.rand()))
    assert found == np.random.RandomState(0).rand(N_ITEMS).tolist()


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("draws", [0, 3])
@pytest.mark.parametrize(
    ("call", "told"), [(of_map, "on_result"), (of_frames, "on_result"), (of_batches, "on_batch")]
)
def test_a_callback_that_draws_changes_no_item(image, call, told, draws, n_jobs):
    found = []

    def take(*given):
        found.extend(given[-1].values() if call is of_batches else given[-1:])
        for _ in range(draws):
            draw(None)

    np.random.seed(7)
    random.seed(7)
    expected = call(image, draw, n_jobs=n_jobs)
    np.random.seed(7)
    random.seed(7)
    call(image, draw, n_jobs=n_jobs, **{told: take})
    assert set(found) >= set(expected)


@calls
def test_the_other_one_of_a_pair_of_normal_numbers_stays_with_its_item(image, call):
    """A generator draws two at once and keeps one, which the next item must not find."""
    found = [
        call(image, lambda _: (np.random.randn(), random.gauss(0, 1)), n_jobs=n_jobs, random_state=0)
        for n_jobs in JOBS
    ]
    assert found[0] == found[1] == found[2]
    assert len({one for pair in found[0] for one in pair}) == 2 * N_ITEMS


def test_a_function_that_seeds_itself_is_left_alone(image):
    def seeded(signals):
        np.random.seed(int(signals.sum()) % 1000)
        return np.random.rand()

    assert of_map(image, seeded, n_jobs=2) == of_map(image, seeded)


def test_threads_draw_what_nobody_else_draws(image):
    found = of_map(image, lambda _: np.random.rand(), n_jobs=2, prefer="threads")
    assert len(set(found)) == N_ITEMS
    given = of_map(image, draw, n_jobs=2, prefer="threads", random_state=0)
    assert given == of_map(image, draw, n_jobs=2, random_state=0)


def test_the_generators_come_back_after_an_error(image):
    def fail(_):
        np.random.rand()
        raise KeyError("it")

    def after(n_jobs):
        np.random.seed(0)
        with pytest.raises(KeyError):
            of_map(image, fail, n_jobs=n_jobs)
        return np.random.rand()

    assert len({after(n_jobs) for n_jobs in JOBS}) == 1


def test_what_cannot_be_pickled_still_works_alone(image):
    with open(__file__) as handle:
        assert of_map(image, lambda _: (handle.readable(), *draw(_))[0]) == [True] * N_ITEMS


def test_workers_share_no_stream_outside_of_functions():
    found = pool.run_processes(lambda _: (np.random.rand(), random.random()), (), [(i,) for i in range(8)], 8)
    again = pool.run_processes(lambda _: (np.random.rand(), random.random()), (), [(i,) for i in range(8)], 8)
    assert len({one for one, _ in found + again}) == len({one for _, one in found + again}) == 16


def test_torch_has_streams_where_it_is_loaded(monkeypatch):
    """A stand-in with the five calls that are used."""

    class Generator:
        def __init__(self):
            self.random = random.Random(0)

        def get_state(self):
            return self.random.getstate()

        def set_state(self, state):
            self.random.setstate(state)

        def manual_seed(self, seed):
            self.random.seed(seed)

    class Drawn(list):
        def tolist(self):
            return list(self)

    def randint(low, high, shape, generator):
        return Drawn(generator.random.randrange(low, high) for _ in range(shape[0]))

    torch = types.ModuleType("torch")
    torch.Generator, torch.randint, torch.default_generator = Generator, randint, Generator()
    monkeypatch.setitem(sys.modules, "torch", torch)

    def numbers():
        def one(_):
            return torch.default_generator.random.random()

        with Streams(len) as streams:
            return threaded.run_threads(one, (), [(i,) for i in range(4)], 1, streams=streams)

    first, second = numbers(), numbers()
    assert len({*first, *second}) == 8
    torch.default_generator.manual_seed(0)
    assert numbers() == first


def test_a_seed_that_is_none_is_refused(image):
    with pytest.raises(ParameterError, match="random_state='zero' is no seed"):
        of_map(image, draw, random_state="zero")


def _of_bits():
    bits = np.random.PCG64(3)
    return lambda _: np.random.Generator(bits).random()


def _of_bits_and_their_generator():
    bits = np.random.PCG64(3)
    rng = np.random.Generator(bits)
    return lambda _: (bits.random_raw(), rng.random())


def _of_spawned_seeds():
    seeds = np.random.SeedSequence(4)
    return lambda _: np.random.default_rng(seeds.spawn(1)[0]).random()


def _of_spawned_generators():
    rng = np.random.default_rng(4)
    return lambda _: rng.spawn(1)[0].random()


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "make", [_of_bits, _of_bits_and_their_generator, _of_spawned_seeds, _of_spawned_generators]
)
def test_what_generators_are_made_of_has_streams_too(image, make):
    def twice(n_jobs):
        function = make()
        return of_map(image, function, n_jobs=n_jobs), of_map(image, function, n_jobs=n_jobs)

    found = [twice(n_jobs) for n_jobs in JOBS]
    assert found[0] == found[1] == found[2]
    assert len({*found[0][0], *found[0][1]}) == 2 * N_ITEMS


MODULE = """
import random
import numpy as np
rng, legacy, own = np.random.default_rng(0), np.random.RandomState(0), random.Random(0)
def draw(_): return rng.random(), legacy.rand(), own.random()
"""


def test_generators_at_the_top_of_a_users_module(image, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    (tmp_path / "users_own.py").write_text(MODULE)

    def drawn(n_jobs):
        sys.modules.pop("users_own", None)
        module = importlib.import_module("users_own")
        first, second = (of_map(image, module.draw, n_jobs=n_jobs) for _ in range(2))
        before = module.rng.bit_generator.state
        of_map(image, len, n_jobs=n_jobs)
        assert module.rng.bit_generator.state == before
        return first + second

    try:
        found = [drawn(n_jobs) for n_jobs in JOBS]
    finally:
        del sys.modules["users_own"]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2 * N_ITEMS


def test_imports_in_the_middle_of_a_call_draw_nothing(tmp_path, monkeypatch):
    (tmp_path / "draws_when_imported.py").write_text("import random; random.random()")
    monkeypatch.syspath_prepend(tmp_path)

    def drawn(n_jobs):
        monkeypatch.delitem(sys.modules, "draws_when_imported", raising=False)
        random.seed(0)
        run = pool.run_processes if n_jobs > 1 else threaded.run_threads
        with Streams(draw) as streams:
            answers = run(draw, (), [(0,), (1,)], n_jobs, preload=("draws_when_imported",), streams=streams)
        return [one for _, one in answers], random.random()

    try:
        assert drawn(1) == drawn(2)
    finally:
        pool._pools.pop(("draws_when_imported",)).end()


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("hold", [lambda rng: rng, lambda rng: [1, rng], lambda rng: {"rng": rng}])
def test_a_generator_that_two_items_hold_is_refused(n_jobs, hold):
    rng = np.random.default_rng(0)
    with pytest.raises(ParameterError, match="'a' and 'b' hold one random generator"):
        batch_process({"a": hold(rng), "b": hold(rng)}, len, n_jobs=n_jobs)
    own = dict(zip("ab", map(hold, rng.spawn(2)), strict=True))
    assert batch_process(own, lambda _: 1, n_jobs=n_jobs).results == {"a": 1, "b": 1}
