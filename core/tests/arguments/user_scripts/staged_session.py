"""The steps of a run one by one."""

from coldpress import ArgumentError, ColdpressError, Oneshot

run = Oneshot("smollm2", "recipe.yaml", stage="first", quiet=True)
try:
    model = run()
except ArgumentError as error:
    print(error)
except ColdpressError as error:
    raise SystemExit(2) from error
Oneshot("m", "r", stream_weigths=True)  # wrong
Oneshot("m", "r", offload_activations="gpu")  # wrong
