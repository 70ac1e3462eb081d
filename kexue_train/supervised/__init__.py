"""The supervised stage: labelled tasks of many kinds train one encoder together, after pretraining.

    weighting/       one number per micro-batch that multiplies its loss, so that no task drowns another

Source: https://kexue.fm/archives/8998, which gives the published RoFormerV2 such a second stage.
"""
