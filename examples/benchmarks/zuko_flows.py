"""Fits of zuko, for `tables.py` and `sbi.py`: its NSF and MAF, by the loop of its tutorials."""

import copy

import numpy as np
import torch
import zuko
from rules import FACTOR, PATIENCES, Clock

METHODS = ("NSF", "MAF")
torch.set_num_threads(1)


class Fit:
    """A flow that was fitted; its arrays are those of numpy."""

    def __init__(self, method, options, rate, weight_decay, train, validation, rules, seed):
        torch.manual_seed(seed)
        clock = Clock()
        train, validation = _tensors(train), _tensors(validation)
        context = train[1].shape[1] if len(train) > 1 else 0
        self.flow = getattr(zuko.flows, method)(train[0].shape[1], context, **options)
        optimizer = torch.optim.AdamW(self.flow.parameters(), lr=rate, weight_decay=weight_decay)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=FACTOR, patience=rules.patience - 1, threshold=0.0
        )
        best, best_epoch, best_weights, first = np.inf, 0, None, None
        for epoch in range(rules.max_epochs):
            self._train(train, optimizer, rules)
            with torch.no_grad():
                nll = self._nll(*validation).item()
            scheduler.step(nll)
            first = first or clock.seconds()
            if nll < best:
                best, best_epoch, best_weights = nll, epoch, copy.deepcopy(self.flow.state_dict())
            if epoch - best_epoch >= PATIENCES * rules.patience or clock.seconds() > rules.limit:
                break
        self.flow.load_state_dict(best_weights)
        self.figures = {
            "val_nll": best,
            "epochs": epoch + 1,
            "first_epoch_s": first,
            "fit_s": clock.seconds(),
            "parameters": sum(p.numel() for p in self.flow.parameters()),
        }

    def _train(self, train, optimizer, rules):
        for rows in torch.randperm(len(train[0])).split(rules.batch_size):
            loss = self._nll(*(part[rows] for part in train))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.flow.parameters(), rules.clip)
            optimizer.step()

    def _nll(self, events, condition=None):
        return -self.flow(condition).log_prob(events).mean()

    @torch.no_grad()
    def log_prob(self, events, condition=None):
        parts = _tensors(events if condition is None else (events, condition))
        return self.flow(*parts[1:]).log_prob(parts[0]).numpy()

    @torch.no_grad()
    def sample(self, n, condition, seed):
        """Samples `[n, *batch, dimensions]` for each condition."""
        torch.manual_seed(seed)
        return self.flow(*_tensors(condition)).sample((n,)).numpy()


def _tensors(data):
    parts = data if isinstance(data, tuple) else (data,)
    return [torch.as_tensor(np.asarray(part, np.float32)) for part in parts]
