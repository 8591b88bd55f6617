"""From a folder or data set of captioned pictures to checked records, and to their latents and conditioning on disk.

Start reading at `survey.survey` for records, at `encoded.Encoded` for tensors.
"""
