"""LLaVA-1.5."""

from segagent_rt_export.registry import MllmExporter

FAMILIES = (
    MllmExporter(
        name="llava",
        model_type="llava",
        model="segagent_rt_export.families.llava.model:llava",
        prefixes=(
            ("model.language_model.", "language."),
            ("model.vision_tower.vision_model.", "visual.tower."),
            ("model.vision_tower.", "visual.tower."),
            ("model.multi_modal_projector.", "visual.projector."),
            ("language_model.model.", "language."),
            ("language_model.lm_head.", "head."),
            ("vision_tower.vision_model.", "visual.tower."),
            ("vision_tower.", "visual.tower."),
            ("multi_modal_projector.", "visual.projector."),
            ("lm_head.", "head."),
        ),
        chat="<s>USER: <image>\n{instruction} ASSISTANT:",
        picture="<image>",
        image_processor="clip.image_processing_pil_clip:CLIPImageProcessorPil",
        padding_processor="llava.image_processing_pil_llava:LlavaImageProcessorPil",
        # CLIP's layers above the features
        needless=r"visual\.tower\.post_layernorm\..*|visual\.tower\.encoder\.layers\..*",
    ),
)
