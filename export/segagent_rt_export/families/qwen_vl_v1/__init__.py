"""Qwen-VL, the first, which SegAgent's released checkpoints are."""

from segagent_rt_export.registry import MllmExporter

FAMILIES = (
    MllmExporter(
        name="qwen_vl",
        model_type="qwen",
        model="segagent_rt_export.families.qwen_vl_v1.model:qwen_vl",
        prefixes=(
            ("transformer.visual.", "visual."),
            ("transformer.", "language."),
            ("lm_head.", "head."),
        ),
        chat=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nPicture 1: <img><imgpad></img>\n{instruction}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        picture="<imgpad>",
        image_processor=None,
        reference="segagent_rt_export.families.qwen_vl_v1.reference:QwenVlV1",
        rearrange="segagent_rt_export.families.qwen_vl_v1.layers:split_layers",
        tokenizer="segagent_rt_export.families.qwen_vl_v1.tiktoken:read_tokenizer",
    ),
)
