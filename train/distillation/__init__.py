"""Knowledge distillation (Hinton et al. 2015): a trained model, the teacher, shows the student what to answer."""
