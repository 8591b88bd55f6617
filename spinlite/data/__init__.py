"""From a folder or data set of captioned pictures to checked records, and to their latents and conditioning on disk.

The entry points are `survey.survey` for records and `encoded.Encoded` for tensors.
"""
