"""The supervised stage: labelled tasks of many kinds train one encoder together, after pretraining.

Source: https://kexue.fm/archives/8998, which gives the published RoFormerV2 such a second stage.
"""
