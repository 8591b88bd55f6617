"""The words of kohya's scripts, OneTrainer, SimpleTuner and ai-toolkit, answered with ours."""

from typing import Any

from spinlite.config.fields import field_of
from spinlite.config.kinds import Kind
from spinlite.config.spelling import to_type, to_write
from spinlite.errors import SpinliteError

SAME = {  # our setting: their words for it
    "model.base": "pretrained_model_name_or_path base_model_name name_or_path pretrained_model ckpt sd_model_name",
    "model.vae": "pretrained_vae_model_name_or_path vae_path",
    "model.init_lora": "network_weights lora_model_name",
    "model.rank": "network_dim network_rank lora_rank lora_dim linear r dim",
    "model.alpha": "network_alpha lora_alpha linear_alpha",
    "model.dora": "use_dora lora_decompose dora_wd",
    "model.rslora": "use_rslora",
    "model.resolution": "max_resolution train_resolution image_size",
    "model.clip_skip": "text_encoder_layer_skip clip_layer_skip",
    "model.max_tokens": "max_token_length tokenizer_max_length",
    "model.motion": "motion_adapter motion_module motion_module_path motion_module_ckpt_path",
    "model.zero_snr": "zero_terminal_snr rescale_betas_zero_snr rescale_noise_scheduler_to_zero_terminal_snr",
    "data.folder": "train_data_dir instance_data_dir instance_data_root folder_path image_dir data_dir dataset_path image_path",
    "data.recursive": "include_subdirectories",
    "data.dataset": "dataset_name",
    "data.limit": "max_train_samples",
    "data.weight": "num_repeats dataset_repeats repeats",
    "data.trigger": "trigger_word class_tokens instance_prompt caption_prefix prepend_caption",
    "data.shuffle": "shuffle_caption shuffle_captions shuffle_tokens enable_tag_shuffling",
    "data.keep_tokens": "keep_tags_count keep_n_tokens",
    "data.tag_dropout": "caption_tag_dropout_rate token_dropout_rate",
    "data.mask_folder": "mask_path conditioning_data_dir",
    "data.flip": "flip_aug random_flip flip_x enable_random_flip",
    "data.buckets": "enable_bucket enable_ar_bucket aspect_ratio_bucketing aspect_ratio_buckets",
    "data.heldout": "validation_split",
    "play.sampler": "sample_sampler validation_noise_scheduler",
    "play.steps": "sample_steps validation_num_inference_steps num_inference_steps diffusion_steps",
    "judge.guidance": "guidance_scale cfg_scale cfg validation_guidance",
    "draw.shift": "discrete_flow_shift flow_shift flow_schedule_shift timestep_shift",
    "draw.low": "min_noising_strength",
    "draw.high": "max_noising_strength",
    "learn.lr": "learning_rate unet_lr unet_learning_rate",
    "learn.batch": "train_batch_size batch_size total_batch_size",
    "learn.optimizer": "optimizer_type optim optimiser",
    "learn.updates": "max_train_steps num_train_steps train_steps",
    "learn.ema": "use_ema ema_decay ema_weight",
    "learn.epochs": "max_train_epochs num_train_epochs num_epochs epoch",
    "learn.caption_dropout": "caption_dropout_rate caption_dropout_probability caption_dropout",
    "judge.prompts": "sample_prompts validation_prompt validation_prompts",
    "memory.precision": "mixed_precision train_dtype weight_dtype dtype",
    "memory.checkpointing": "gradient_checkpointing unet_gradient_checkpointing",
    "memory.compile": "torch_compile dynamo_backend",
    "report.trackers": "log_with report_to",
    "method.beta": "beta_dpo dpo_beta flow_dpo_beta",
}
MEANT = {  # their word: our setting, and the value that does the same
    "v_parameterization": ("model.prediction", "v"), "v_pred": ("model.prediction", "v"),
    "is_v_pred": ("model.prediction", "v"), "force_v_prediction": ("model.prediction", "v"),
    "prediction_type": ("model.prediction", "v"),
    "xformers": ("memory.attention", "xformers"), "use_xformers": ("memory.attention", "xformers"),
    "enable_xformers_memory_efficient_attention": ("memory.attention", "xformers"),
    "sdpa": ("memory.attention", "sdpa"), "mem_eff_attn": ("memory.attention", "sdpa"),
    "attention_mechanism": ("memory.attention", "sdpa"),
    "min_snr_gamma": ("draw.weight", "min-snr"), "snr_gamma": ("draw.weight", "min-snr"),
    "loss_weight_fn": ("draw.weight", "min-snr"),
    "conv_dim": ("model.targets", "all"), "conv_alpha": ("model.targets", "all"), "conv": ("model.targets", "all"),
    "bucket_no_upscale": ("data.upscale", 1), "random_crop": ("data.crop", "random"),
    "timestep_sampling": ("draw.times", "logit-normal"), "timestep_type": ("draw.times", "logit-normal"),
    "weighting_scheme": ("draw.times", "logit-normal"), "timestep_distribution": ("draw.times", "logit-normal"),
    "use_8bit_adam": ("learn.optimizer", "adamw8bit"),
    "fp8_base": ("memory.quantize", "int8"), "fp8_base_unet": ("memory.quantize", "int8"),
    "base_model_precision": ("memory.quantize", "int8"), "load_in_8bit": ("memory.quantize", "int8"),
    "lowvram": ("memory.one_graph", True), "low_vram": ("memory.one_graph", True),
}  # fmt: skip
OPTIONS = {  # an option that is no setting: their words for it
    "--name my-style": "output_name model_name save_name",
    "--processes 2": "num_processes num_gpus multi_gpu",
    "--runs my-runs": "output_dir output_model_destination workspace_dir training_folder logging_dir log_dir",
}
REASONS = {  # why there is no such setting, and what to do instead: their words
    "captions are read from .txt files beside the pictures; leave it out":
        "caption_extension caption_extention caption_ext caption_strategy",
    "a LoRA on the UNet is the only kind, and has no module to name; leave it out, and set its size with --rank 16":
        "network_module network_type network_args peft_type lora_type algo network_train_unet_only training_method",
    "text encoders are not trained: captions are encoded once, before learning; leave it out":
        "text_encoder_lr text_encoder_lr1 text_encoder_lr2 network_train_text_encoder_only train_text_encoder "
        "text_encoder_learning_rate text_encoder_1_learning_rate",
    "pictures and captions are always encoded once and kept on disk; leave it out":
        "cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk vae_batch_size "
        "latent_caching cache_text_embeddings skip_cache_check vae_cache_ondemand",
    "bucket shapes follow from the base model's size; leave it out, or set the size with --resolution 1024":
        "min_bucket_reso max_bucket_reso bucket_reso_steps num_ar_buckets min_ar max_ar aspect_bucket_rounding",
    "the batch of a step counts all its pictures, and the plan splits it by itself; set it with --batch 16":
        "gradient_accumulation_steps gradient_accumulation",
    "the learning rate follows one schedule; set its height with --lr 1e-4":
        "lr_scheduler lr_warmup_steps lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_args lr_warmup_ratio "
        "learning_rate_scheduler learning_rate_warmup_steps lr_decay_steps",
    "a LoRA of each round is kept, the last state too; type `spinlite export RUN --round 2` for the LoRA of round 2":
        "save_every_n_epochs save_every_n_steps save_every save_last_n_epochs save_n_epoch_ratio save_state "
        "checkpointing_steps checkpoint_step_interval save_state_on_train_end max_step_saves_to_keep backup_after",
    "the same command goes on where the run stopped; leave it out":
        "resume resume_from_checkpoint initial_epoch initial_step skip_until_initial_step continue_last_backup",
    "pictures are drawn at the start and after every round; type --set judge.prompts=@prompts.txt for prompts of your own":
        "sample_every_n_epochs sample_every_n_steps sample_every sample_at_first validation_steps validation_epochs",
    "the opponent keeps the model near what it was, so no regularisation pictures are needed; leave it out":
        "reg_data_dir prior_loss_weight with_prior_preservation class_data_dir prior_generation_precision",
    "real pictures and fakes are compared under plain noise; leave it out":
        "noise_offset multires_noise_iterations multires_noise_discount adaptive_noise_scale ip_noise_gamma noise_offset_type "
        "offset_noise_weight perturbation_noise_weight input_perturbation",
    "the error is the plain squared one, which the methods are made of; leave it out, or type --set draw.weight=min-snr":
        "loss_type huber_schedule huber_c debiased_estimation_loss scale_v_pred_loss_like_noise_pred v_pred_like_loss",
    "times run from 0 (clean) to 1 (noise) here; type --set draw.low=0.2 for 200 of 1000":
        "min_timestep max_timestep timestep_bias_strategy",
    "the guards of a run watch for that by themselves; leave it out":
        "max_grad_norm scale_weight_norms network_dropout rank_dropout module_dropout clip_grad_norm",
    "precision is chosen so that nothing overflows, the VAE's too; leave it out":
        "no_half_vae full_bf16 full_fp16 fp8_vae upcast_vae vae_dtype",
    "the plan chooses what fits your card; type `spinlite plan PRESET`":
        "lowram blocks_to_swap layer_offloading offload_fraction fused_backward_pass highvram cpu_offload_checkpointing",
    "the LoRA is written as .safetensors in fp16; type `spinlite export RUN --dtype fp32` for another":
        "save_model_as save_precision output_dtype output_model_format lora_format",
    "the journal and the sheets are in the run's folder, and go to a tracker too; type --set report.trackers=wandb":
        "log_prefix log_tracker_name wandb_run_name tensorboard log_every performance_log_every",
    "pictures are read while the card works, with as many threads as help; leave it out":
        "max_data_loader_n_workers persistent_data_loader_workers dataloader_threads num_workers",
    "colours are part of the look that is learned; leave it out": "color_aug face_crop_aug_range color_jitter",
    "several cards train with --processes 2, and nothing else needs to be set; leave it out": "ddp_timeout deepspeed",
}  # fmt: skip
COUNTED = {"learn.updates": " (counted for each round)", "learn.epochs": " (counted for each round)"}
PLACES = {word: place for place, words in SAME.items() for word in words.split()}
TYPED = {word: option for option, words in OPTIONS.items() for word in words.split()}
WHY = {word: reason for reason, words in REASONS.items() for word in words.split()}


def answer(word: str, value: Any, typed: bool) -> SpinliteError | None:
    """The error for another trainer's word; None if it is none. `typed`: on the command line, not in a preset."""
    name = word.strip().lstrip("-").replace("-", "_").lower()
    if place := PLACES.get(name):
        return SpinliteError(f"{name} is {place} here{COUNTED.get(place, '')}", fix=spell(place, value, typed))
    if name in MEANT:
        place, ours = MEANT[name]
        return SpinliteError(f"{name} is {place} = {ours} here", fix=spell(place, ours, typed))
    if option := TYPED.get(name):
        return SpinliteError(f"{name} is no setting here, but an option", fix=f"type {option}")
    if reason := WHY.get(name):
        why, _, remedy = reason.rpartition("; ")
        return SpinliteError(f"there is no {name} here: {why}", fix=remedy.replace("leave it out", f"leave {name} out"))
    return None


def spell(place: str, value: Any, typed: bool) -> str:
    """What to type or to write for a setting, with the value if it fits, else with one near it."""
    if field := field_of(place):
        kind = Kind(field)
        value = kind.suggest(kind.parse(value) if isinstance(value, str) else value)
    return f"type {to_type(place, value)}" if typed else f"write {to_write(place, value)}"
