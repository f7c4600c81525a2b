"""python render.py -m MODEL: masks, heat maps and overlays of sentences in the views of a trained model's scene.

    python render.py -m output/ramen                               # the scene's sentences in its test views
    python render.py -m output/ramen --text "the egg on the noodles" "the glass next to the bowl"
    python render.py -m output/ramen --views all --threshold 0.4 --iteration 15000
    python render.py -m output/ramen --text "the egg on the noodles" --export egg.ply --remove without_egg.ply
    python render.py -m output/ramen --text "the egg on the noodles" --video orbit

Pictures go to MODEL/<test|train>/iteration_N/{masks,heat,overlay}/<view>/<sentence id>.png; manifest.json beside the
three folders lists the sentence of each id.
"""

from __future__ import annotations

import hashlib

from arguments import ModelParams, PipelineParams, RenderingParams, SelectionParams, VideoParams, parse
from gaussian_renderer import background_color
from inference.export import check_flags, write_selections
from inference.predict import Request, open_trained, saved_model_flags, scene_requests
from inference.selection import select
from inference.video import write_videos
from scene.dataset import View, slug
from utils.errors import UserError, run
from utils.scripts import setup_logging


def main() -> None:
    setup_logging()
    groups = [ModelParams, PipelineParams, RenderingParams, SelectionParams, VideoParams]
    model, pipeline, rendering, selection, video = parse(__doc__.split("\n")[0], groups, saved=saved_model_flags)
    sentences = text_sentences(rendering.text)
    check_flags(selection, len(sentences), model.model_path)
    opened = open_trained(model, pipeline, rendering.iteration, rendering.threshold)
    exports = selection.export or selection.remove
    if exports or video.video:
        in_3d = sentences and (exports or video.video == "orbit")
        selections = select(opened, sentences, selection) if in_3d else {}
        if exports:
            write_selections(opened, selections, selection)
        if video.video:
            background = background_color(model)
            write_videos(opened, sentences, selections, video, rendering.views, model.resolution, background)
        return
    pairs = 0
    for split in ("test", "train"):
        if rendering.views not in (split, "all"):
            continue
        requests = make_requests(getattr(opened.scene, split), rendering.text)
        if requests:
            folder = opened.predictions(split)
            masks = opened.predictor.write(folder, requests, rerender=True)
            print(f"{masks} masks in {len(requests)} {split} views: {folder.root}")
            pairs += masks
    if not pairs:
        raise UserError(
            f"no view of {opened.scene.path} in --views {rendering.views} has a sentence to render (split: "
            f"{opened.scene.split_rule}). Choose other views, or give sentences of your own with --text."
        )


def text_sentences(texts: list[str]) -> dict[str, str]:
    """Return the sentences of --text by id, "text-<words>-<hash>", which no sentence of a scene has.

    Raises:
        UserError: if one of them is empty.
    """
    sentences = [" ".join(text.split()) for text in texts]
    if not all(sentences):
        raise UserError('--text has an empty sentence; give words in quotes, such as --text "the red mug".')
    return {f"text-{slug(s)}-{hashlib.sha1(s.encode()).hexdigest()[:8]}": s for s in sentences}


def make_requests(views: list[View], texts: list[str]) -> list[Request]:
    """Request the texts in every view, or without texts each view's own sentences."""
    if texts:
        sentences = text_sentences(texts)
        return [Request(view, sentences) for view in views]
    return scene_requests(views)


if __name__ == "__main__":
    run(main)
