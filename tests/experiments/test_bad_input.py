"""Bad input: one or two lines that name flag, value and remedy, before anything is compiled."""

import json
import shutil

import pytest

import fedjax_post
from fedjax_post.study import build, metered, trained
from fedjax_post.study.files import read_spec, write_spec


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch):
    """Neither training nor scoring may begin, and no hub may be asked."""
    import datasets
    import huggingface_hub

    def reached(*args, **kwargs):
        raise AssertionError("the run began")

    monkeypatch.setattr(fedjax_post, "run", reached)
    monkeypatch.setattr(metered, "measure_at", reached)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def refused(call, tmp_path, capsys):
    """Calls the program, expects a refusal, and returns its message."""

    def refused(*given):
        assert call(*given) == 2
        message = capsys.readouterr().err.strip().splitlines()
        message = [line for line in message if line.startswith("error: ")][-1]
        assert len(message) < 600
        return message

    return refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--adapter=text_prompt", "--adapter=text_prompt needs an initial text; give one"),
        ("--prompt_text=say:", "--template=auto is none; give one, such as"),
        ("--algorithm=fed_avg --access=LOGITS", "needs GRADIENTS of the 'target' model"),
        ("--algorithm=fedavg", "--algorithm=fedavg is no algorithm; did you mean fed_avg?"),
        ("--algorithm=nowhere.at:all", "--algorithm=nowhere.at:all cannot be loaded"),
        (
            "--cohort_sise=3",
            "--cohort_sise is not a flag; did you mean --cohort_size? --help lists the flags",
        ),
        ("--num_rounds=0", "--num_rounds=0 must be at least 1"),
        ("--heldout_clients=0.01", "--heldout_clients=0.01 holds out none of 4 clients; use"),
        ("--heldout_clients=1", "--heldout_clients=1.0 must be less than 1"),
        ("--score_personal", "--algorithm=fed_avg has no models of clients' own, as its clients"),
        ("--score_personal --algorithm=scaffold", "what its clients keep is no part of a model"),
        ("--adapter=qlora", "qlora is no choice; did you mean lora?"),
        ("cohort_size=3", "'cohort_size=3' is not a flag; write --name=value"),
        ("--mu=0.1", "--mu=0.1: --algorithm=fed_avg does not take it; it belongs to fed_prox"),
        ("--algorithm=scaffold --grad_clip=1", "--algorithm=scaffold does not take it; it belongs"),
        ("--embeddings=builtin", "--algorithm=fed_avg does not take it; it belongs to fed_dtpt"),
        ("--algorithm=fed_prox --mu=-1", "mu must not be negative, got -1.0; 0 is FedAvg"),
        ("--local_steps=2 --local_epochs=2", "exclude each other; give one"),
        (
            "--uplink=topk(0.1)",
            "--uplink=topk(0.1): topk is unknown; did you mean top_k?",
        ),
        ("--uplink=__import__('os')", "__import__ is unknown; there are clip, cast"),
        ("--uplink=clip(1.0).bound", "is not a call of a name; there are clip, cast"),
        ("--uplink=clip(**{'a':1})", "** is not allowed; write name=value"),
        ("--uplink=top_k(0.1", "not a list of calls; write names such as clip and cast"),
        ("--uplink=top_k(2.0)", "top_k(2.0): fraction must be in (0, 1], got 2.0"),
        ("--uplink=top_k(1/2)", "1 / 2 is neither a number nor a call of a name"),
        ("--uplink=sign(),clip(1.0)", "clip acts on values, so it must be the first link"),
        ("--uplink=cast(bfloat17)", "--uplink=cast(bfloat17): cast(bfloat17): "),
        ("--uplink=cast(bfloat16),ef21(sign())", "ef21 must contain all other links"),
        ("--uplink=ef21(sign()) --aggregate=krum(1)", "EF21"),
        ("--uplink=error_feedback(sign()) --algorithm=flora", "clients start afresh in every"),
        ("--uplink=sign() --baseline=central", "--baseline=central sends nothing"),
        ("--aggregate=mean", "mean is unknown; there are coordinate_median, trimmed_mean"),
        ("--aggregate=trimmed_mean(0.7)", "fraction must be in [0, 0.5), got 0.7"),
        ("--aggregate=krum(1),krum(2)", "give one rule"),
        (
            "--aggregate=krum(1) --algorithm=lora_fair",
            "--aggregate=krum(1): another aggregate",
        ),
        ("--group_size=4", "--group_size=4 needs --objective=grpo; give that too"),
        ("--objective=grpo --pack_length=32", "rows of --objective=grpo are not packed"),
        ("--objective=grpo --reward=exakt", "there are exact, head, and your own is package"),
        ("--objective=grpo --reward=json:nothing", "--reward=json:nothing cannot be loaded"),
        ("--objective=grpo --grpo_clip=2", "--grpo_clip=2.0 must be less than 1"),
        ("--objective=grpo --answer_length=99", "--answer_length=99: the model's context has room"),
        ("--objective=grpo --algorithm=fed_bpt --adapter=soft_prompt", "--objective=grpo: --algo"),
        ("--dpo_beta=0.1", "--dpo_beta=0.1 needs --objective=dpo; give that too"),
        ("--objective=dpo --dpo_beta=0", "--dpo_beta=0.0 must be greater than 0"),
        ("--objective=dpo", "--rejected_column=rejected: no such column; there are client"),
        ("--objective=dpo --adapter=full", "--objective=dpo compares with the model as it was"),
        (
            "--objective=dpo --rejected_column=task --algorithm=offsite_tuning",
            "trains a model beside the target",
        ),
        ("--dp_clip=1", "--dp_clip=1 needs --dp_epsilon or --dp_noise_multiplier"),
        ("--dp_epsilon=1", "--dp_epsilon=1 needs --dp_clip, the maximum norm"),
        ("--dp_epsilon=1 --dp_clip=1 --dp_noise_multiplier=1", "both set the noise; give one"),
        ("--dp_clip_quantile=0.5", "--dp_clip_quantile=0.5 needs --dp_epsilon"),
        ("--dp_epsilon=1 --dp_clip=1 --dp_bands=4", "give --sampling=cyclic"),
        ("--sampling=cyclic", "--dp_bands is their number"),
        ("--dp_epsilon=1 --dp_clip=1 --dp_bands=99 --sampling=cyclic", "must be at most --num_r"),
        ("--dp_epsilon=1 --dp_clip=1 --dp_noise_population=9", "the population of --dp_noise_coh"),
        (
            "--dp_epsilon=1 --dp_clip=1 --dp_noise_cohort=9 --dp_noise_population=8",
            "exceeds --dp_noise_population=8",
        ),
        (
            "--dp_epsilon=1 --dp_clip=1 --dp_noise_at=client --dp_clip_quantile=0.5",
            "--dp_clip_quantile=0.5 is of noise that the server adds",
        ),
        (
            "--dp_epsilon=1 --dp_clip=1 --secure_sum --dp_noise_cohort=50",
            "--dp_noise_cohort=50 is of noise that the server adds",
        ),
        ("--dp_epsilon=1 --dp_clip=1 --secure_sum --dp_noise_at=step", "leave one of them out"),
        ("--dp_epsilon=1 --dp_clip=1 --dp_noise_at=step --pack_length=64", "puts several into one"),
        ("--dp_epsilon=1 --dp_clip=1 --dp_noise_at=step --objective=grpo", "hides single rows"),
        (
            "--dp_noise_multiplier=1 --dp_clip=1 --partition=iid --num_clients=8",
            "column client names who holds a row",
        ),
        ("--dp_epsilon=1 --dp_clip=1 --baseline=central", "--baseline=central has no cohorts"),
        ("--dp_epsilon=1 --dp_clip=1 --aggregate=krum(1)", "--aggregate=krum(1) is another rule"),
        ("--dp_epsilon=1 --dp_clip=1 --client_weight=tokens", "all clients must have weight 1"),
        ("--dp_epsilon=1 --dp_clip=1 --sampling=full --dp_delta=0.5", "--dp_delta=0.5 must be in"),
        ("--dp_noise_multiplier=1 --dp_clip=1 --sampling=full --uplink=clip(1)", "leave clip out"),
        (
            "--dp_noise_multiplier=1 --dp_clip=1 --sampling=full --algorithm=flora",
            "--dp_clip=1: noise cannot be used with this algorithm",
        ),
        ("--secure_sum", "--secure_sum needs a bound on what a client sends"),
        ("--secure_threshold=0.5", "--secure_threshold=0.5 needs --secure_sum"),
        ("--secure_sum --baseline=local", "--secure_sum: --baseline=local has no sums"),
        ("--secure_sum --aggregate=krum(1)", "--aggregate=krum(1) needs single uploads"),
        ("--secure_sum --uplink=top_k(0.1)", "of the links, only clip can stay"),
        ("--secure_sum --uplink=error_feedback(clip(1))", "leave error_feedback out"),
        ("--secure_sum --uplink=ef21(clip(1))", "--secure_sum: a secure sum cannot be used"),
        ("--secure_sum --uplink=clip(1) --telemetry_clients=4", "--telemetry_clients=4 reads"),
        ("--secure_sum --uplink=clip(1) --cohort_size=1", "a sum of one upload is that upload"),
        ("--algorithm=ditto(fedavg)", "fedavg is no algorithm; did you mean fed_avg?"),
        ("--algorithm=ditto(fed_avg,mu=-1)", "mu must not be negative, got -1"),
        ("--algorithm=dito(fed_avg)", "dito is unknown; did you mean ditto?"),
        ("--cohort_size=5", "5 exceeds the population of 4 clients; lower --cohort_size"),
        ("--sampling=poisson --cohort_size=5", "lower --cohort_size to at most 4"),
        ("--lora_rank=9", "--lora_rank=9 exceeds layer"),
        ("--client_ranks=1,9", "each must be from 1 to --lora_rank=2, with --adapter=lora"),
        ("--client_ranks=1,2", "--algorithm=fed_avg trains all components on every client"),
        ("--client_ranks=one", "invalid literal for int"),
        ("--adapter=full --algorithm=flora", "use --adapter=lora or an algorithm for any"),
        ("--adapter=full --quantize=nf4", "--quantize=nf4 freezes the weights that --adapter=full"),
        ("--quantize=int4", "int4 is no choice; did you mean int8?"),
        ("--lora_targets=query", "--lora_targets: 'query' matches no linear layer"),
        ("--lora_dropout=1", "--lora_dropout must be in [0, 1), got 1"),
        ("--dataset=/nowhere/rows.jsonl", "--dataset=/nowhere/rows.jsonl: no such file"),
        ("--dataset=nobody/nothing", "--dataset=nobody/nothing is not a local path"),
        ("--model=/nowhere/model", "--model=/nowhere/model: there is no such folder"),
        ("--model=nobody/nothing", "--model=nobody/nothing is neither a local folder nor in"),
        ("--prompt_column=ask", "--prompt_column=ask: no such column; there are client"),
        ("--partition=dirichlet", "--partition=dirichlet needs --num_clients"),
        (
            "--partition=dirichlet --num_clients=3 --partition_alpha=0",
            "--partition_alpha=0.0 must be greater than 0",
        ),
        ("--partition=shardz(2)", "--partition=shardz(2): shardz is unknown; did you mean shards?"),
        ("--partition=shards(0)", "--partition=shards(0): shards(0): per_client must be a whole"),
        ("--partition=shards(2,alpha=1)", "unexpected keyword argument 'alpha'"),
        ("--partition=iid,shards", "--partition=iid,shards has 2 rules; give one"),
        ("--partition=shards(7) --num_clients=3", "21 shards for 3 clients, but there are 18 rows"),
        ("--partition=shards(1) --num_clients=1 --cohort_size=1", "fewer than the 2 labels"),
        ("--partition=dirichlet(0)", "alpha must be positive and finite, got 0"),
        ("--partition=quantity(normal)", "law must be one of lognormal, power_law, poisson"),
        ("--partition=quantity(poisson,1.0)", "poisson has none; leave it out"),
        ("--partition=quantity(skew=-1)", "skew must be finite and at least 0, got -1"),
        ("--partition=quantity --num_clients=19", "--num_clients must be in [1, number of rows"),
        ("--partition=length(2)", "skew of lengths must be in [0, 1], got 2"),
        ("--partition=language", "--partition=language needs a column, and none was found; choose"),
        ("--partition=clusters(1)", "num_clusters must be a whole number of at least 2, got 1"),
        ("--partition=clusters(3,0.3,bert)", "features must be one of tfidf, embeddings, got bert"),
        (
            "--partition=shards --partition_alpha=0.3",
            "--partition_alpha=0.3 is a setting of --partition=dirichlet; leave it out",
        ),
        ("--partition_alpha=0.3", "--partition_alpha=0.3 is a setting of --partition=dirichlet"),
        ("--max_examples=-1", "--max_examples=-1 must be at least 0"),
        ("--partition=iid --num_clients=99", "--num_clients must be in [1, number of rows = 18]"),
        ("--template={question}", "template names {question}, which is not a column"),
        ("--template=alpaca", "--template=alpaca is unknown; use auto, chat, plain"),
        ("--max_length=3", "--max_length=3 leaves no response in any of the"),
        ("--max_length=99", "--max_length=99 exceeds the model's context of 32 tokens"),
        ("--heldout_fraction=0", "--heldout_fraction=0 leaves no rows to score on"),
        ("--mesh=clients:8", "--mesh=clients:8 is for 8 devices and there are 1; give axes"),
        ("--mesh=lanes:1", "--mesh=lanes:1 names axes ['lanes']; there are clients and model"),
        ("--mesh=model:1 --executor=host", "--mesh=model:1: --executor=host computes on one"),
        ("--mesh=model:1 --chunk_size=auto", "--chunk_size=auto knows one device's memory"),
        ("--resume", "holds no run to resume; leave --resume out to start one"),
        ("--resume --output_dir=", "--resume needs --output_dir"),
    ],
)
def test_flags_are_refused(refused, tmp_path, given, said):
    assert said in refused(*given.split())
    assert not (tmp_path / "run").exists()


def break_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_template(folder):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (truncate, "model.safetensors is truncated"),
        (lambda folder: break_config(folder, intermediate_size=12), "wrong shapes"),
        (lambda folder: break_config(folder, num_hidden_layers=2), "tensors are missing"),
        (lambda folder: break_config(folder, model_type="mamba"), "mamba"),
        (lambda folder: break_config(folder, vocab_size=5), "the tokenizer has"),
        (no_template, "--template=chat needs a chat template and the tokenizer has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_models_are_refused(refused, tiny_folder, tmp_path, harm, said):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    harm(folder)
    assert said in refused(f"--model={folder}", "--template=chat")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ('{"instruction": "a", "response": "", "client": 0}\n' * 4, "holds no response"),
        ('{"instruction": "a", "said": "b"}\n' * 4, "no response column was found"),
        ('{"instruction": "a", "response": "b", "client": 0}\n', "leaves none to train on"),
        ("no json", "cannot be read"),
    ],
)
def test_bad_data_are_refused(refused, tmp_path, text, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert said in refused(f"--dataset={path}")


def test_natural_clients_need_a_column(refused, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "response": "b"}\n' * 4)
    assert "--client_column" in refused(f"--dataset={path}", "--partition=natural")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--dataset=/nowhere/rows.jsonl", "--dataset=/nowhere/rows.jsonl: no such file"),
        ("--dataset=builtin --cohort_size=500", "500 exceeds the population of 128 clients"),
        ("--partition=iid --num_clients=3 --cohort_size=4", "4 exceeds the population of 3"),
    ],
)
def test_what_no_library_is_needed_for_is_refused_at_once(refused, monkeypatch, given, said):
    def reached(*args):
        raise AssertionError("the model's folder was read")

    monkeypatch.setattr(build, "load_config", reached)
    monkeypatch.setattr(trained, "load_tokenizer", reached)
    assert said in refused(*given.split())


def test_a_client_whose_rows_all_leave_no_response_is_named(refused, tmp_path):
    rows = [{"instruction": "cat", "response": "dog", "client": k} for k in (0, 1) for _ in "123"]
    rows += [{"instruction": "cat " * 20, "response": "dog", "client": 7}] * 3
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(f"--dataset={path}", "--max_length=16", "--heldout_fraction=0.1")
    assert "clients (such as 7) without a row that has a response" in said


@pytest.mark.heavy
def test_a_folder_that_holds_another_run_is_refused(call, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert call(f"--output_dir={finished}") == 2
    assert "holds another run (spec.json" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--batch_size=3", "--batch_size=3 differs from the run in"),
        ("--num_rounds=3", "has 4 rounds already; give at least as many"),
        ("--algorithm=fed_adam", "--algorithm=fed_adam differs"),
    ],
)
def test_a_run_is_not_resumed_as_another_one(call, finished, capsys, given, said):
    before = (finished / "spec.json").read_text()
    assert call(f"--output_dir={finished}", "--resume", given) == 2
    assert said in capsys.readouterr().err
    assert (finished / "spec.json").read_text() == before


def test_rounds_do_not_grow_under_a_schedule(call, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "spec.json"
    write_spec(path, read_spec(path).put({"method.client_schedule": "cosine"}))
    assert call("--resume", "--num_rounds=6", "--client_schedule=cosine") == 2
    assert "--client_schedule depends on it" in capsys.readouterr().err
