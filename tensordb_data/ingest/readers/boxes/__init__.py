"""Images with boxes, masks and keypoints: COCO, Pascal VOC, YOLO.

All give the field `annotations`: a list of dicts, one for each object, in the words of COCO. `bbox` is
`[x, y, width, height]` in pixels, from the corner of the image on. `class` is the name of its category, and `label` its
number from 0 on.
"""
