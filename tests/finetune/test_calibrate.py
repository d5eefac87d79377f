"""Temperature scaling finds the temperature that is there, and only that."""

import pytest
import torch

from hpsearch.finetune.calibrate import BINS, HIGHEST, calibrate, expected_error, nll


def drawn(temperature, images=20_000, classes=5, spread=3.0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    g = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(images, classes, generator=g)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=g)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature):
    logits, labels = drawn(temperature)
    found = calibrate(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.nll_after == pytest.approx(nll(logits, labels, found.temperature))
    assert found.nll_after <= found.nll_before
    assert found.ece_after < 0.015
    if temperature != 1:
        assert found.ece_before > 0.05
    assert torch.equal((logits / found.temperature).argmax(1), logits.argmax(1))


def test_it_is_the_optimum_and_a_gradient_method_finds_the_same():
    logits, labels = drawn(1.7, images=500)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([log_t], lr=0.5, max_iter=100, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(logits.double() / log_t.exp(), labels)
        value.backward()
        return value

    solver.step(loss)
    assert calibrate(logits, labels).temperature == pytest.approx(log_t.exp().item(), rel=1e-6)


def test_a_model_that_is_always_right_keeps_its_temperature_and_says_why():
    labels = torch.arange(4)
    found = calibrate(torch.eye(4) * 2, labels)
    assert found.temperature == 1
    assert (found.nll_after, found.ece_after) == (found.nll_before, found.ece_before)
    assert "every validation image is classified rightly" in found.reason


def test_a_model_worse_than_guessing_becomes_as_unsure_as_allowed():
    labels = torch.arange(4)
    assert calibrate(torch.eye(4).roll(1, 1) * 5, labels).temperature == pytest.approx(HIGHEST)


def test_the_calibration_error_is_that_of_its_definition():
    logits, labels = drawn(2.0, images=300)
    confidence, predicted = logits.double().softmax(1).max(1)
    total = 0.0
    for i in range(BINS):
        inside = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        if inside.any():
            gap = (predicted == labels)[inside].double().mean() - confidence[inside].mean()
            total += float(inside.double().mean() * gap.abs())
    assert expected_error(logits, labels) == pytest.approx(total)
    sure = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    assert expected_error(sure, torch.tensor([0, 1])) == pytest.approx(0.5)  # certain twice, right once
