"""The Python interface: two optimizers in the design fair, in about 15 seconds."""

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import ahf_cli

if __name__ == "__main__":  # worker processes import this file as well
    folder = TemporaryDirectory()
    results = Path(folder.name)

    # %% A configuration: a preset with changes, a YAML file, or a dictionary
    config = ahf_cli.configure(
        {
            "study": "two",
            "task": {"subset": 500, "batch_size": 100},
            "train": {"steps": 10, "eval_every": 5},
            "search": {
                "design": "fair", "sampler": "random", "objective": "validation_loss",
                "trials": 2, "reruns": 2, "recipes": ["hf_stable", "adam"],
            },
        }
    )  # fmt: skip

    # %% Run the study; the same call resumes after an interruption, and repeats no finished trial
    study = ahf_cli.run(config, results)
    print(study.trials.groupby("recipe")["test_accuracy"].agg(["count", "mean", "max"]))
    print(study.best[["validation_loss", "params.lr"]])

    # %% Curves and steps are DataFrames
    last = study.curves.groupby(["recipe", "trial"]).last()
    print(last[["work", "seconds", "test_accuracy"]].groupby("recipe").mean())
    print(study.steps.groupby("recipe")["cg_iterations"].mean())

    # %% Compare: tables, figures, verdict
    comparison = ahf_cli.compare(study, target=0.5)
    print(comparison.overview().to_string(index=False))
    print("\n".join(comparison.verdict.lines()))
    files = comparison.save_figures(results / "report")
    print(f"{len(files)} files, such as {files[1].name}")

    # %% One run with chosen hyperparameters
    single = ahf_cli.train("hf_stable", config, results, lr=0.3, radius=0.2)
    print(single.curves[["step", "train_loss", "test_accuracy"]])

    # %% Pack the study into a few files, and read the packed study
    packed = ahf_cli.pack(study, results / "packs")
    assert packed.trials.equals(ahf_cli.load_study(results / "two").trials)
    folder.cleanup()
