"""A first configuration for data and a machine: survey.py looks, choose.py decides, write.py gives the reasons."""
