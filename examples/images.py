"""A flow of small images: train it, look at samples, keep it.

    python examples/images.py

Needs scikit-learn and matplotlib. Takes half a minute.
"""

import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

import tfp_selfnorm as sn

digits = load_digits().images.astype("uint8")  # 8x8 pixels, 17 grey levels
x = sn.images.dequantize(digits, seed=1)
train, test = x[:1500], x[1500:]

model = sn.FlowModel.from_builder(
    sn.dense_flow,
    event_shape=(8, 8),
    num_layers=2,
    activation="spline",
    preprocessing=sn.images.pixel_sigmoid(num_levels=17),
    seed=1,
)
model.adapt(train, whitens=True)  # initial values from data
model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, 30 * 15)))
model.fit(train, epochs=30, batch_size=100, validation_data=(test,))

nll = model.evaluate(test, verbose=0, return_dict=True)["nll"]
print(f"{nll:.1f} nats, {nll / 64 / 0.6931:.2f} bits per pixel on test images")
model.save("digits.keras")  # `keras.models.load_model` goes on from here
model.export("digits_served")  # a SavedModel for TensorFlow alone

sn.plot.images(model.sample(64, seed=1), num_levels=17)
plt.savefig("digits.png")
