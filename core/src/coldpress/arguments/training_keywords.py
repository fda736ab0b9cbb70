"""The keywords of `train` as types, as `keywords` has them of `oneshot`.

Those of transformers are of the release in constraints.txt, which a test compares: what another release takes besides
goes to it all the same, and a type checker does not know it.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

from coldpress.arguments.keywords import AnyPath, OneshotKeywords


class TrainingKeywords(TypedDict, total=False):
    """As `TrainingArguments`."""

    distill_teacher: Any
    checkpoint_dir: AnyPath | None
    resume_from_checkpoint: AnyPath | bool | None
    run_stages: bool
    max_train_samples: int | None
    peft_config: Any
    merge_adapters: bool
    callbacks: Sequence[Any]
    measure: bool


class TrainerKeywords(TypedDict, total=False):
    """As transformers' `TrainingArguments`, without what `oneshot` takes under the same name."""

    per_device_train_batch_size: int
    num_train_epochs: float
    max_steps: int
    learning_rate: float
    lr_scheduler_type: Any
    lr_scheduler_kwargs: Any
    warmup_steps: float
    optim: Any
    optim_args: str | None
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    optim_target_modules: Any
    gradient_accumulation_steps: int
    average_tokens_across_devices: bool
    max_grad_norm: float
    label_smoothing_factor: float
    bf16: bool
    fp16: bool
    bf16_full_eval: bool
    fp16_full_eval: bool
    tf32: bool | None
    activation_checkpointing: bool | None
    activation_checkpointing_kwargs: Any
    gradient_checkpointing: bool | None
    gradient_checkpointing_kwargs: Any
    torch_compile: bool
    torch_compile_backend: str | None
    torch_compile_mode: str | None
    use_liger_kernel: bool
    liger_kernel_config: Any
    use_cache: bool
    neftune_noise_alpha: float | None
    torch_empty_cache_steps: int | None
    auto_find_batch_size: bool
    logging_strategy: Any
    logging_steps: float
    logging_first_step: bool
    log_on_each_node: bool
    logging_nan_inf_filter: bool
    include_num_input_tokens_seen: Any
    log_level: str
    log_level_replica: str
    disable_tqdm: bool | None
    report_to: Any
    run_name: str | None
    project: str
    trackio_space_id: str | None
    trackio_bucket_id: str | None
    trackio_static_space_id: Any
    eval_strategy: Any
    eval_steps: float | None
    eval_delay: float
    per_device_eval_batch_size: int
    prediction_loss_only: bool
    eval_on_start: bool
    eval_do_concat_batches: bool
    eval_use_gather_object: bool
    eval_accumulation_steps: int | None
    include_for_metrics: Any
    batch_eval_metrics: bool
    save_only_model: bool
    save_strategy: Any
    save_steps: float
    save_on_each_node: bool
    save_total_limit: int | None
    enable_jit_checkpoint: bool
    push_to_hub: bool
    hub_token: str | None
    hub_private_repo: bool | None
    hub_model_id: str | None
    hub_strategy: Any
    hub_always_push: bool
    hub_revision: str | None
    load_best_model_at_end: bool
    metric_for_best_model: str | None
    greater_is_better: bool | None
    ignore_data_skip: bool
    restore_callback_states_from_checkpoint: bool
    full_determinism: bool
    data_seed: int | None
    use_cpu: bool
    accelerator_config: Any
    parallelism_config: Any
    dataloader_drop_last: bool
    dataloader_pin_memory: bool
    dataloader_persistent_workers: bool
    dataloader_prefetch_factor: int | None
    dataloader_multiprocessing_context: str | None
    dataloader_in_order: bool
    remove_unused_columns: bool
    label_names: Any
    train_sampling_strategy: str
    length_column_name: str
    ddp_find_unused_parameters: bool | None
    ddp_bucket_cap_mb: int | None
    ddp_broadcast_buffers: bool | None
    ddp_static_graph: bool | None
    ddp_backend: str | None
    ddp_timeout: int
    fsdp: str | None
    fsdp_config: Any
    deepspeed: Any
    debug: Any
    skip_memory_metrics: bool
    do_train: bool
    do_eval: bool
    do_predict: bool
    local_rank: int


class TrainKeywords(OneshotKeywords, TrainingKeywords, TrainerKeywords, total=False):
    """All that `train` takes beside a model and a recipe."""
