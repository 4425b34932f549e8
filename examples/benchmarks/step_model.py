"""Seconds and memory of one training step of a dense flow, from counts and the constants of a machine.

The step is that of `FlowModel` with Adam, of a `dense_flow` with the smooth leaky ReLU, in float32. D is the
size of an event, B the number of examples of a replica, L the number of layers. The counts follow from the
method (`math/linear.py`, `inverse_learning/tracking.py`) and from the graph of a step;
`tests/examples/test_step_model.py` compares them with graphs and variables. `scale.py` fits the constants to
measured steps. Parts of a step do not overlap here, so their seconds add up.

- Products of a batch with a kernel take `2 B D^2` operations each: six a layer with the paper's regularizer,
  three in the other ways, of which the first layer saves one. Tracking has five products of 8 probes more,
  and one of 8 examples for the figure on the progress bar.
- The inverse and the log-det take `2 D^3` and `2/3 D^3` operations. Refreshes come between the steps. Each
  host does all of them, once for its replicas, which wait.
- The rest reads and writes memory: kernels and gradients, which have `D^2` numbers, and activations, which
  have `B D`. Without a strategy XLA compiles the update by Adam. With one it is not compiled, and each of its
  operations reads and writes memory. Each replica does the whole update.
- A strategy with several replicas adds up the gradients, and the R of each tracked layer, which all of them
  set to the same values.
"""

import dataclasses
import math

# Bytes of a float32 number.
_NUMBER = 4
# Rows of the probes of `Tracking`, and examples of which the error of R is shown.
_FEW = 8
# Of the numbers of a kernel, passes over memory. XLA reads the gradient, W and two moments, writes W and the
# moments, and reads W to see whether it is finite. Operation by operation Adam has 30, and the same check.
_COMPILED_UPDATE, _UPDATE = 8, 31
# A strategy packs the gradients and takes them apart: it reads and writes each twice. It divides R by the
# number of replicas.
_PACKING, _MEAN = 4, 2
# What a step holds for a while, see `peak_bytes`: the largest of `benchmark_scale_model_constants.csv`.
HELD = (4.0, 4.5)
# Counts of steps as int64, the rate as float32.
_SCALARS = 4 * 8 + 4


@dataclasses.dataclass(frozen=True)
class Method:
    """The counts of one way to train. A pair stands for `first * layers + second` a step.

    Attributes:
      products: products of a batch with a kernel.
      few_products: products of `_FEW` rows with a kernel.
      inverses: exact inverses a step and layer.
      refresh: operations of one refresh of a layer, over `D^3`.
      trained: kernels of a layer that the optimizer trains. Both kernels are held in any case.
      reduced: tensors of the size of a kernel that replicas add up, a layer.
      kernel_passes: reads and writes of the numbers of a kernel, without the update and the inverse.
      batch_passes: the same for the numbers of a batch.
      few_passes: the same for `_FEW` rows.
      figures: figures of the progress bar.
    """

    products: tuple[int, int]
    few_products: int
    inverses: int
    refresh: float
    trained: int
    reduced: int
    kernel_passes: tuple[int, int]
    batch_passes: tuple[int, int]
    few_passes: int
    figures: int


METHODS = {
    "tracked": Method((3, -1), 6, 0, 8 / 3, 1, 2, (24, -1), (61, -23), 53, 5),
    "paper": Method((6, 0), 0, 0, 2 / 3, 2, 2, (28, 0), (83, -21), 0, 4),
    "exact": Method((3, -1), 0, 1, 2 / 3, 1, 1, (11, -1), (59, -23), 0, 3),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step, and its counts.

    Attributes:
      method: a name of `METHODS`.
      size: D.
      batch: B, the examples of one replica.
      layers: L.
      replicas: the number of all replicas, on all hosts.
      hosts: the number of hosts, or of processes that train together.
      has_strategy: whether the model was made under a strategy; several replicas need one.
      refresh_every: steps between two refreshes; `None` takes that of `SelfNormDense`.
    """

    method: str
    size: int
    batch: int = 100
    layers: int = 2
    replicas: int = 1
    hosts: int = 1
    has_strategy: bool = False
    refresh_every: int | None = None

    @property
    def counts(self):
        return METHODS[self.method]

    def product_operations(self):
        """Multiplications and additions of the products, with the small products of probes."""
        few = min(_FEW, self.batch)
        rows = self._linear(self.counts.products) * self.batch
        of_probes = 0
        if self.method == "tracked":
            probes = min(_FEW, self.size)
            rows += self.layers * (few + (self.counts.few_products - 1) * probes)
            of_probes = 2 * self.layers * probes**2 * self.size
        return 2 * rows * self.size**2 + of_probes

    def inverse_operations(self):
        """Those of the inverses in the step itself."""
        return 2 * self.layers * self.counts.inverses * self.size**3

    def refresh_operations(self):
        """Those of the refreshes, divided by the steps between them."""
        interval = self.refresh_every or max(20, self.size // 8)
        return self.layers * self.counts.refresh * self.size**3 / interval

    def kernel_traffic(self):
        """Bytes of kernels, gradients and moments that the step reads and writes."""
        trained = self.layers * self.counts.trained
        passes = self._linear(self.counts.kernel_passes)
        passes += trained * (_UPDATE if self.has_strategy else _COMPILED_UPDATE)
        if self.replicas > 1:
            passes += _PACKING * trained
            passes += _MEAN * self.layers * (self.counts.reduced - self.counts.trained)
        return _NUMBER * passes * self.size**2

    def activation_traffic(self):
        """Bytes of the examples, the probes and what layers make of them that the step reads and writes."""
        rows = self._linear(self.counts.batch_passes) * self.batch
        rows += self.layers * self.counts.few_passes * min(_FEW, self.size)
        return _NUMBER * rows * self.size

    def reduced_bytes(self):
        """Bytes of all tensors that the replicas add up, without scalars."""
        return _NUMBER * self.layers * (self.counts.reduced * self.size**2 + self.size)

    def collectives(self):
        """The number of additions over the replicas, each of which waits for all.

        They are the gradients in one pack, each R that is tracked, and two checks for finite numbers. With
        several hosts Keras takes the mean of each figure in each step: a sum and a count.
        """
        of_inverses = self.layers * (self.counts.reduced - self.counts.trained)
        return 1 + of_inverses + 2 + (2 * self.counts.figures if self.hosts > 1 else 0)

    def variable_bytes(self):
        """Bytes of W, R, biases, the two moments of trained variables, held log-dets and counts."""
        kernels = self.layers * (2 + 2 * self.counts.trained) * self.size**2
        biases = 3 * self.layers * self.size
        return _NUMBER * (kernels + biases + self.layers) + _SCALARS

    def gradient_bytes(self):
        """Bytes of the gradients of all trained variables."""
        return _NUMBER * self.layers * (self.counts.trained * self.size**2 + self.size)

    def _linear(self, pair):
        return pair[0] * self.layers + pair[1]


@dataclasses.dataclass(frozen=True)
class Machine:
    """The constants of a machine.

    Attributes:
      products: operations a second of products.
      inverses: operations a second of inverses and log-dets.
      memory: bytes a second that reach and leave memory.
      overhead: seconds a step that do not depend on sizes.
      network: bytes a second of the slowest link between two replicas, in one direction.
      latency: seconds of a message over a link.
    """

    products: float
    inverses: float
    memory: float
    overhead: float
    network: float = math.inf
    latency: float = 0.0


def link_bytes(step):
    """Bytes that an all-reduce sends over each link: the least, which rings and trees of NCCL reach."""
    return 2.0 * (step.replicas - 1) / step.replicas * step.reduced_bytes()


def messages(step):
    """Messages that one waits for after the other: up a tree and down again."""
    return 2 * math.ceil(math.log2(step.replicas)) * step.collectives()


def seconds(step, machine):
    """Seconds of each part of a step; their sum is the step, with its share of the refreshes."""
    return {
        "products": step.product_operations() / machine.products,
        "inverses": step.inverse_operations() / machine.inverses,
        "refreshes": step.refresh_operations() / machine.inverses,
        "kernels": step.kernel_traffic() / machine.memory,
        "activations": step.activation_traffic() / machine.memory,
        "all-reduce": link_bytes(step) / machine.network + messages(step) * machine.latency,
        "overhead": machine.overhead,
    }


def peak_bytes(step, held=HELD):
    """Bytes of one replica at the peak of a step: variables, gradients, and what operations hold for a while.

    `held` has the numbers of tensors of the size of a kernel, and of activations a layer.
    """
    kernels, activations = held
    numbers = kernels * step.size**2 + activations * step.layers * step.batch * step.size
    return step.variable_bytes() + step.gradient_bytes() + _NUMBER * numbers
