"""Arguments that are accepted and do nothing here."""

# Accepted so that a script written for llm-compressor runs; each is said to do nothing when it is set.
WITHOUT_EFFECT: dict[str, str] = {
    "clear_sparse_session": "there is no global session to clear",
    "dataloader_num_workers": "batches are made once, before the run, and stay in memory",
    "dvc_data_repository": "DVC is not read; fetch the file and pass its path as dataset",
    "min_tokens_per_module": "it counts nothing in llm-compressor either; see moe_min_tokens",
    "overwrite_cache": "tokens are never cached",
    "preprocessing_num_workers": "calibration samples are few and the tokenizer has its own threads",
    "quantization_aware_calibration": "deprecated in llm-compressor, where it does nothing either",
    "remove_columns": "columns that the model does not take are left out",
    "sequential_offload_device": "what waits is on its card, in CPU memory or on disk: see offload_activations",
    "sequential_prefetch": "no installed pipeline reads ahead",
    "sequential_targets_per_subgraph": "no installed pipeline cuts the model into parts",
    "tracing_ignore": "nothing is traced: it is the model's own forward that runs",
}
