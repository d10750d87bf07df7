"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from segagent_rt_export.registry import MllmExporter

_PREFIXES = (
    ("model.language_model.", "language."),
    ("model.visual.", "visual."),
    ("language_model.model.", "language."),
    ("language_model.lm_head.", "head."),
    ("visual.", "visual."),
    ("model.", "language."),
    ("lm_head.", "head."),
)
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_TURN = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def _family(name: str, chat: str, served_by: tuple[str, ...]) -> MllmExporter:
    return MllmExporter(
        name=name,
        model_type=name,
        model=f"segagent_rt_export.families.qwen_vl.model:{name}",
        prefixes=_PREFIXES,
        chat=chat,
        picture="<|image_pad|>",
        image_processor="qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil",
        served_by=served_by,
    )


FAMILIES = (
    _family("qwen2_vl", _SYSTEM + _TURN, ("trtllm",)),
    _family("qwen2_5_vl", _SYSTEM + _TURN, ("edge-llm", "trtllm")),
    _family("qwen3_vl", _TURN, ("edge-llm", "trtllm")),
)
