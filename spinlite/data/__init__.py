"""From a folder or data set of captioned pictures to checked records and their encoded store.

The door is `survey.survey` for records, `encoded.Encoded` for tensors.
"""
