"""Array types that name the axes and the dtype of every argument.

They are annotations: the tests check them at run time (jaxtyping and beartype), and in normal use they cost nothing.

Axis names: `example`, `neuron` (all hidden neurons in network order, unless a layer is named), `class`, `code`, `mask`,
`order`, `rank`, `step`. `*network` is an optional first axis for several networks.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Num, Shaped

AnyArray = jax.Array | np.ndarray

Images = Num[AnyArray, "example ..."]
Labels = Int[AnyArray, "example"]
Targets = Shaped[AnyArray, "example ..."]  # labels of any kind, for outcomes of the user
Activations = Float32[AnyArray, "example neuron"]
Codes = Int[AnyArray, "example neuron"]
Counts = Int[AnyArray, "neuron class code"]
Scores = Float[AnyArray, "neuron"]
Fill = Float[AnyArray, "*network neuron"]
Mask = Bool[AnyArray, "neuron"]
Masks = Bool[AnyArray, "*network mask neuron"]
Order = Int32[AnyArray, "rank"]
Orders = Int[AnyArray, "*network order rank"]
Steps = Int[AnyArray, "step"]
