"""The console commands, as installed and as called by scripts/."""

from __future__ import annotations

from gpt2x.config.command import Command
from gpt2x.config.schema import BenchmarkConfig, EvaluateConfig, ExportConfig, GenerateConfig, TrainConfig

train = Command(
    name="gpt2x-train",
    config_name="train",
    schema=TrainConfig,
    run="gpt2x.training.run:train",
    has_run_folder=True,
    shown=(
        "seed",
        "trainer.max_steps",
        "trainer.max_epochs",
        "trainer.eval_every",
        "data.batch_size",
        "model.context_length",
        "model.n_layer",
        "model.n_head",
        "model.n_embd",
        "model.dropout",
        "optimizer.lr",
        "optimizer.weight_decay",
        "device.threads",
        "paths.outputs",
        "resume",
    ),
    examples=(
        "                                        the first run: a tiny model learns to tell stories",
        "model=micro data=shakespeare            another size, another corpus",
        "data=text data.path=notes.txt           your own text",
        "experiment=verdict_124m                 a whole recipe",
        "init=run init.path=RUN task=classifier data=spam_sample          fine-tune an earlier run's model",
        "-m optimizer.lr=3e-4,1e-3 seed=1,2 hydra/launcher=joblib         a sweep: four runs, side by side",
        "resume=outputs/sweeps/DATE/TIME         go on where a run or a sweep stopped; what failed is run again",
        "model=micro --cfg job                   look before you run",
    ),
)

generate = Command(
    name="gpt2x-generate",
    config_name="generate",
    schema=GenerateConfig,
    run="gpt2x.generation.run:generate",
    shown=(
        "checkpoint",
        "which",
        "prompt",
        "instruction",
        "input",
        "prompt_file",
        "text_column",
        "interactive",
        "format",
        "output",
        "seed",
        "sampling.max_new_tokens",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.samples",
        "sampling.stop",
        "generation.weights",
        "device.threads",
    ),
    examples=(
        'checkpoint=outputs/runs/DATE/TIME_NAME prompt="Once upon a time"',
        "checkpoint=RUN interactive=true                      type prompts, change settings, see what comes",
        "checkpoint=RUN sampling=greedy                       always the likeliest token",
        "checkpoint=RUN prompt_file=prompts.txt output=texts.jsonl",
        "checkpoint=RUN -m sampling.temperature=0.5,0.8,1.1   one text for each temperature",
        'checkpoint=RUN instruction="Correct the spelling." input="I can swimm."   of a run with task=instruct',
        'checkpoint=RUN prompt="You have won a prize!"        of one with task=classifier: what it is',
        "checkpoint=RUN prompt_file=messages.csv output=predictions.csv            the same for a table",
    ),
)

evaluate = Command(
    name="gpt2x-evaluate",
    config_name="evaluate",
    schema=EvaluateConfig,
    run="gpt2x.evaluation.run:evaluate",
    shown=(
        "checkpoint",
        "which",
        "split",
        "output",
        "generation.weights",
        "evaluation.mode",
        "evaluation.stride",
        "evaluation.context_length",
        "evaluation.batch_size",
        "evaluation.against_fp32",
        "device.threads",
    ),
    examples=(
        "checkpoint=outputs/runs/DATE/TIME_NAME            perplexity on the run's own validation text",
        "checkpoint=RUN evaluation.mode=strided            all of it in a row, in windows that overlap by half",
        "checkpoint=RUN data=shakespeare                   on another text",
        "checkpoint=RUN data=text data.path=notes.txt data.val_fraction=0 split=train   all of your own text",
        "checkpoint=RUN output=perplexity.json             also as JSON",
        "checkpoint=RUN evaluation=classification split=test          a classifier, beside a logistic regression",
        "checkpoint=RUN evaluation=rouge evaluation.max_new_tokens=40   answers beside their references",
        "checkpoint=RUN generation.weights=int8 evaluation.against_fp32=true            what int8 costs",
    ),
)

export = Command(
    name="gpt2x-export",
    config_name="export",
    schema=ExportConfig,
    run="gpt2x.interop.export:export",
    shown=("checkpoint", "which", "format", "output", "weights", "base"),
    examples=(
        "checkpoint=RUN format=gguf output=model.gguf             a language model or an instructed one, for llama.cpp",
        "checkpoint=RUN format=gguf weights=q8_0 output=small.gguf",
        "checkpoint=RUN format=peft output=adapter                what finetune=lora has trained, for Hugging Face's peft",
    ),
)

benchmark = Command(
    name="gpt2x-benchmark",
    config_name="benchmark",
    schema=BenchmarkConfig,
    run="gpt2x.benchmark.run:benchmark",
    shown=(
        "suite.contestants",
        "suite.batch_sizes",
        "suite.prompt_tokens",
        "suite.new_tokens",
        "suite.rounds",
        "device.threads",
        "output",
    ),
    examples=(
        "suite=generate                                       all contestants that are installed, GPT-2's 124M",
        "suite=generate suite.contestants=[gpt2x-int8,llama.cpp-q8_0] suite.batch_sizes=[1]",
        "suite=generate model=gpt2-medium suite.rounds=3      another size",
        "suite=generate device.threads=1",
        "suite=finetune                                       fine-tuning a classifier: the book's way, transformers, ours",
        "suite=finetune suite.contestants=[book,gpt2x,gpt2x-cached]",
    ),
)
