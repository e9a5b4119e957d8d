"""Flower's side of the small job: its simulation engine, its FedAvg, numpy clients.

<python with flwr[simulation]> flower.py
"""

import os
import time

import channel
import logistic
import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

_MANY = 1_000_000  # more rounds than are ever asked for
client_app = ClientApp()


@client_app.train()
def train(message, context):
    """Answers a visit, after full-batch gradient steps."""
    from flwr.app import Message

    mine = logistic.small_clients()[int(context.node_config["partition-id"])]
    w = message.content["arrays"].to_numpy_ndarrays()[0].copy()
    for _ in range(logistic.SMALL_STEPS):
        w -= logistic.SMALL_RATE * logistic.gradient(w, mine["x"], mine["y"]).astype(w.dtype)
    metrics = MetricRecord({"num-examples": len(mine["y"])})
    content = RecordDict({"arrays": ArrayRecord([w]), "metrics": metrics})
    return Message(content=content, reply_to=message)


def main():
    """Runs the simulation, which waits after each round for the next request."""
    out = channel.open_channel()
    arrays = logistic.small_clients()
    server_app = ServerApp()
    shape = logistic.SMALL["features"], logistic.SMALL["classes"]
    left, began = 0, 0.0

    def after_round(number, record):
        nonlocal left, began
        left -= 1
        if number == 0:
            channel.answer(out, ready=True)
        elif left == 0:
            channel.answer(out, seconds=time.perf_counter() - began)
        while left <= 0:
            request = channel.ask()
            if request is None:
                os._exit(0)  # a simulation cannot be ended otherwise before its last round
            if request.get("evaluate"):
                loss = logistic.mean_loss(record.to_numpy_ndarrays()[0], arrays)
                channel.answer(out, loss=loss, seconds=0.0)
                continue
            left, began = request["rounds"], time.perf_counter()
        return None

    @server_app.main()
    def serve(grid, context):
        del context
        everybody = {"min_train_nodes": logistic.SMALL_CLIENTS}
        everybody["min_available_nodes"] = logistic.SMALL_CLIENTS
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, **everybody)
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord([np.zeros(shape, np.float32)]),
            num_rounds=_MANY,
            evaluate_fn=after_round,
        )

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, logistic.SMALL_CLIENTS, backend_config=resources)


if __name__ == "__main__":
    main()
