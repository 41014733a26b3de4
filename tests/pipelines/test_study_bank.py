import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from kdcache.recipe.draws import Stream, permutation
from kdcache.student.config import make_config
from kdcache.student.losses import label_loss, sparse_kl
from kdcache.student.optim import make_optimizers, make_schedules
from kdcache.targets.target import SparseTarget
from pipelines.demo import GREY
from pipelines.digits import DigitNet
from pipelines.study.bank import Bank, Lesson, Setting, schedule, score_bank, train_bank
from pipelines.study.design import student
from pipelines.study.lessons import certain

VIEWS, ROWS, BATCH, EPOCHS, SEED = 3, 20, 10, 10, 7
SETTINGS = [Setting(1e-2, 1.0, 1e-4), Setting(3e-2, 2.0, 1e-1), Setting(3e-3, 4.0, 0.0)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _network(seed: int) -> DigitNet:
    torch.manual_seed(seed)
    return student()


def _lesson(seed: int, temperature: float = 1.0) -> Lesson:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (VIEWS, ROWS, 12, 12), generator=random, dtype=torch.uint8)
    logits = 3 * torch.randn(VIEWS, ROWS, 10, generator=random)
    return Lesson(pixels, certain((logits / temperature).softmax(2)))


def _plain_losses(network: DigitNet, lesson: Lesson, setting: Setting) -> list[float]:
    """Return the losses of the library's parts on the same batches, one network alone."""
    config = make_config(
        student="",
        epochs=EPOCHS,
        learning_rate=setting.learning_rate,
        weight_decay=setting.weight_decay,
    )
    steps = EPOCHS * (ROWS // BATCH)
    optimizers = make_optimizers(network, config)
    schedules = make_schedules(optimizers, config, num_steps=steps)
    losses = []
    network.train()
    for epoch in range(EPOCHS):
        order = permutation(SEED, epoch, view=0, count=ROWS, stream=Stream.SHUFFLE)
        for rows in torch.from_numpy(order).split(BATCH):  # type: ignore[no-untyped-call]  # torch's own
            pixels, target = lesson.batch(epoch, rows)
            logits = network(GREY(pixels[:, None].expand(-1, 3, -1, -1)))
            loss = sparse_kl(logits, target, temperature=setting.temperature or 1.0).mean()
            optimizers[0].zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            optimizers[0].step()
            schedules[0].step()
            losses.append(float(loss.detach()))
    return losses


def _trained(
    networks: list[DigitNet], lessons: list[Lesson], settings: list[Setting]
) -> tuple[Bank, Tensor]:
    bank = Bank(networks)
    losses = train_bank(
        bank, lessons, settings=settings, epochs=EPOCHS, batch_size=BATCH, seed=SEED
    )
    return bank, torch.stack(losses)


def test_each_student_of_a_bank_follows_the_librarys_own_optimiser_on_the_same_batches() -> None:
    lessons = [_lesson(n, setting.temperature or 1.0) for n, setting in enumerate(SETTINGS)]
    _, losses = _trained([_network(n) for n in range(3)], lessons, SETTINGS)
    assert losses.shape == (20, 3)
    for n, setting in enumerate(SETTINGS):
        alone = torch.tensor(_plain_losses(_network(n), lessons[n], setting))
        torch.testing.assert_close(losses[:, n], alone, rtol=0, atol=1e-4)
        assert alone[-1] < alone[0]


def test_a_student_does_not_depend_on_its_neighbours() -> None:
    networks, lessons = [_network(n) for n in range(3)], [_lesson(n) for n in range(3)]
    _, among = _trained(networks, lessons, SETTINGS)
    _, others = _trained(
        [networks[0], networks[2]], [lessons[0], lessons[2]], [SETTINGS[0], SETTINGS[1]]
    )
    torch.testing.assert_close(among[:, 0], others[:, 0], rtol=0, atol=1e-4)


def test_a_trained_student_measures_as_the_network_of_its_parameters_and_statistics_does() -> None:
    lessons = [_lesson(n) for n in range(3)]
    bank, _ = _trained([_network(n) for n in range(3)], lessons, SETTINGS)
    pixels, labels = lessons[0].pixels_VRHW[0], torch.arange(ROWS) % 10
    target = SparseTarget(None, lessons[0].target.log_probs_NK[0], torch.full((ROWS,), -torch.inf))
    scores = score_bank(bank, pixels, target=target, labels_N=labels)
    network = _network(0)
    vector_to_parameters(bank.flat_MP.detach()[1], network.parameters())
    norms = [layer for layer in network.features if isinstance(layer, nn.BatchNorm2d)]
    for norm, (mean, variance) in zip(norms, bank.statistics, strict=True):
        norm.running_mean, norm.running_var = mean.view(3, -1)[1], variance.view(3, -1)[1]
    with torch.inference_mode():
        logits = network.eval()(GREY(pixels[:, None].expand(-1, 3, -1, -1)))
    assert scores[1]["kl"] == pytest.approx(float(sparse_kl(logits, target).mean()), abs=1e-5)
    best = logits.argmax(1)
    assert scores[1]["accuracy"] == pytest.approx(float((best == labels).double().mean()))
    taught = target.log_probs_NK.argmax(1)
    assert scores[1]["agreement"] == pytest.approx(float((best == taught).double().mean()))
    assert scores[0] != scores[1]


def test_measuring_a_bank_changes_nothing() -> None:
    lesson = _lesson(0)
    bank = Bank([_network(0)])
    target = SparseTarget(None, lesson.target.log_probs_NK[0], torch.full((ROWS,), -torch.inf))

    def measure() -> list[dict[str, float]]:
        pixels = lesson.pixels_VRHW[0]
        return score_bank(
            bank, pixels, target=target, labels_N=torch.zeros(ROWS, dtype=torch.int64)
        )

    assert measure() == measure()


def test_labels_as_certain_targets_have_the_gradient_of_the_librarys_label_loss() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 10, generator=random, requires_grad=True)
    labels, partners = torch.arange(8), (torch.arange(8) + 1) % 8
    weights = torch.tensor([0, 0.25, 0.5, 0.75, 1, 1, 0.1, 0.9])
    loss = label_loss(logits, labels, partner_labels_N=partners, weights_N=weights).mean()
    eye = torch.eye(10)
    target = certain(torch.lerp(eye[partners], eye[labels], weights[:, None])[None])
    flat = SparseTarget(None, target.log_probs_NK[0], target.log_tail_N[0])
    gradients = [
        torch.autograd.grad(value, logits)[0] for value in (loss, sparse_kl(logits, flat).mean())
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("kept", [1, 3])
def test_students_of_sparse_targets_learn_them(kept: int) -> None:
    dense = _lesson(0)
    log_probs, indices = dense.target.log_probs_NK.topk(kept, dim=2)
    tail = (1 - log_probs.exp().sum(2)).log()
    lesson = Lesson(dense.pixels_VRHW, SparseTarget(indices, log_probs, tail))
    _, losses = _trained([_network(0), _network(1)], [lesson, lesson], SETTINGS[:2])
    alone = torch.tensor(_plain_losses(_network(0), lesson, SETTINGS[0]))
    torch.testing.assert_close(losses[:, 0], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shift", "expected"), [(0, [0, 1, 2, 0, 1]), (1, [1, 2, 0, 1, 2]), (2, [2, 0, 1, 2, 0])]
)
def test_a_lesson_pairs_each_view_with_the_target_shifted_from_it(
    shift: int, expected: list[int]
) -> None:
    lesson = _lesson(0)
    shifted = Lesson(lesson.pixels_VRHW, lesson.target, shift)
    rows = torch.tensor([4, 2])
    for epoch, view in enumerate(expected):
        pixels, target = shifted.batch(epoch, rows)
        assert torch.equal(pixels, lesson.pixels_VRHW[epoch % VIEWS][rows])
        assert torch.equal(target.log_probs_NK, lesson.target.log_probs_NK[view][rows])


def test_one_target_serves_all_views() -> None:
    lesson = _lesson(0)
    fixed = Lesson(lesson.pixels_VRHW, certain(torch.full((1, ROWS, 10), 0.1)), shift=1)
    targets = [fixed.batch(epoch, torch.arange(ROWS))[1].log_probs_NK for epoch in range(4)]
    assert all(torch.equal(target, targets[0]) for target in targets)


def test_the_schedule_warms_up_and_ends_near_nothing() -> None:
    factors = schedule(100)
    assert factors[0] == pytest.approx(1 / 4)
    assert max(factors) == factors[3] == 1
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert 0 < factors[-1] < 0.001
