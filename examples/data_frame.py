"""A flow of a CSV file: samples beside the data, and the rows that do not fit.

    python examples/data_frame.py [FILE.csv]

Needs pandas and matplotlib. Without a file it takes the wines of scikit-learn. Columns of text, and
columns that do not vary, are left out.
"""

import sys

import keras
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.datasets import load_wine

import tfp_selfnorm as sn

frame = pd.read_csv(sys.argv[1]) if len(sys.argv) > 1 else load_wine(as_frame=True).data
frame = frame.select_dtypes("number").dropna().sample(frac=1, random_state=1)
frame = frame.loc[:, frame.nunique() > 1]
columns = sn.tables.prepare(frame)
print(columns)  # the kind of each column, and why

events = columns.dequantize(frame, seed=1)  # noise for integer columns; the others stay
model = sn.FlowModel.from_builder(
    sn.tables.table_flow,
    columns=columns,
    flow_builder=sn.dense_flow,
    num_layers=2,
    activation="spline",
    seed=1,
)
model.compile(keras.optimizers.Adam(3e-3))
stop = keras.callbacks.EarlyStopping("val_nll", mode="min", patience=10, restore_best_weights=True)
model.fit(events, epochs=200, validation_split=0.2, callbacks=[stop], verbose=0)
print(f"{stop.best:.2f} nats a row on held-out rows")

samples = columns.to_frame(model.sample(1000, seed=1))
samples.to_csv("samples.csv", index=False)
sn.plot.marginals(frame.iloc[:, :5], samples.iloc[:, :5])
plt.savefig("samples.png")

print("The rows of the lowest density:")
print(frame.assign(log_density=model.log_prob(events)).nsmallest(5, "log_density"))
