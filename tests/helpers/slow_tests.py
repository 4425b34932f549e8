"""The tests that `make test` leaves to `make test-slow`: above some seconds, alone or together.

Patterns of the end of a test's identifier, for `re.search`. The fast tests keep one case of each: compiled by
default, small, in this process.
"""

SLOW = (
    # Processes: killed and resumed, on several workers, or examples as users run them.
    r"test_keras_life.py::test_life\[.*(SIGKILL|two workers)",
    r"test_keras_life.py::test_life\[((conv|glow)_flow-|coupling_flow, conditions-(?!save))",
    r"test_keras_life.py::test_life\[conv_flow, circulant-(export|save)",
    r"test_keras_life.py::test_life\[free_form_flow(, exact-|-[^s])",
    r"test_saving.py::test_a_file_keeps_how_a_model_was_made_compiled_and_trained",
    r"test_export.py::test_(a_process_without_the_package_gets_the_same|gradients_are_kept)\[(dense|conv|glow)",
    r"test_conditional_saving.py::test_a_file_goes_on_to_the_bit\[(plain|kwargs)",
    r"test_(examples|train|study|benchmark).py::",
    r"test_toy_examples.py::test_toy_gallery",
    r"test_toy_examples.py::test_benchmark_scaling",
    r"test_toy_examples.py::test_the_densities_of_the_toys\[(spirals|two_moons)",
    # The same fit, compiled otherwise.
    r"test_flow_model.py::test_fit_(lowers_the_exact_likelihood|takes_any_distribution_of_tfp)\[.*-(xla|eager)\]",
    r"test_flow_model_images.py::test_fit_compiled_otherwise_is_the_same",
    r"test_flow_model_images.py::test_fit_lowers_the_exact_likelihood\[(conv|glow), [^d]",
    r"test_constraints.py::test_masks_hold_however_the_step_is_compiled\[options[01]\]",
    r"test_block_tridiagonal.py::test_compiled\[(system|.*-xla)",
    r"test_block_tridiagonal.py::test_one_bad_system_of_a_batch_sends_all_to_orthogonal_elimination\[xla",
    # test_dense_gradients.py has the gradients of these ways, and another way takes the same steps.
    r"test_flow_model.py::test_fit_lowers_the_exact_likelihood\[(symmetric|inverse_only|relative)",
    r"test_flow_model.py::test_no_log_det_is_computed_in_the_training_graph\[(symmetric|inverse_only)",
    # Two richer optimizers, and a convolution with both an inverse to learn and a regularizer, are fast.
    r"test_fused_update.py::test_weights_and_state_are_those_of_the_plain_update\[(adam|sgd with momentum)\]",
    r"test_flow_model_images.py::test_what_is_exact_stays_out_of_the_training_graph\[conv, paper",
    # A step that is skipped is fast under XLA, and so is a data set without labels.
    r"test_faults.py::test_(training_stops_after|a_learning_rate_that_is_not_finite).*\[xla\]",
    r"test_flow_model_errors.py::test_nan_in_a_data_set_is_reported_with_its_batch\[.*(jit|eager).*-True\]",
    r"test_contract.py::test_xla_equals_eager\[(self_norm_conv|channel_split|affine_coupling of|glow_flow)",
    # Trainings of many steps, or sums over all images.
    r"test_circular_spline_coupling.py::test_a_von_mises_of_two_modes",
    r"test_table_flow.py::test_(fit_finds|files_and_exports|angles_alone|a_condition_turns)",
    r"test_table_flow.py::test_a_positive_and_a_periodic_column\[dtype1",
    r"test_table_flow.py::test_all_kinds_at_once_are_a_change_of_variables\[coupling_flow",
    r"test_conditional_builders.py::test_(a_process|two_mixed_dimensions)_of_two_modes",
    r"test_fit_to_target.py::test_the_log_z_of_a_banana",
    r"test_gradient_corrections.py::test_fit_adds_the_last_error_if_it_is_steady\[((fast|far)-.*jit|(slow|far)-[{][}])",
    r"test_conditional_builders.py::test_a_condition_through_an_embedding_from_fit_to_a_file\[free",
    r"test_fit_to_target.py::test_a_gaussian_target\[(self_norm-none|self_norm-data|relative)",
    r"test_contract.py::test_xla_equals_eager\[(learned_inverse, exact|coupling_flow)",
    r"test_fit_to_target.py::test_a_step_goes_along_the_gradient_.*\[(exact networks|couplings)",
    r"test_constraints.py::test_a_pixel_cnn_sums_to_one_over_all_images",
    r"test_constraints.py::test_a_masked_density_in_the_plane_still_integrates_to_one\[.*(fn|subclass|permutations)\]",
    r"test_flow_model_figures.py::test_a_layer_in_control_flow_trains_under_tracking",
    r"test_(more_)?public_reports.py::",
    r"test_peers_reports.py::",
    r"test_conditions_and_targets_of_others.py::test_(posterior|the_normalising|evidence_of_a_model)",
    # The same routes in a callback stay.
    r"test_gradient_corrections.py::test_the_correction_is_that_of.*\[between",
    r"test_gradient_corrections.py::test_the_correction_is_that_of.*\[in_a_callback-(set|whole)",
    r"test_variational.py::",
    r"test_fit_data.py::test_sample_weights_in_data_sets",
    r"test_names.py::test_(long_file_names|the_names_that_are_taken_go_all_the_way)",
    r"test_faults.py::test_a_run_goes_on_from_fit_to_fit_and_ends_with_compile",
    r"test_fused_update.py::test_with_the_options_of_compile",
    # Of the pages of the documentation the README and the short ones are fast.
    r"test_notebooks.py::test_notebook",
    r"test_pages.py::test_page\[docs/pages/(getting|guides/(?!plain)|migrating)",
    r"test_bigger_models.py::test_a_layer_of_a_functional_model_ends_at_the_optimum\[(adaptive|none)\]",
    r"test_bigger_models.py::test_two_flows_of_a_subclassed_model_end_at_the_sum_of_the_optima\[[TN]",
    r"test_flow_model_images.py::test_centred_images_train_further",
    r"test_free_form_density.py::test_the_density_of_a_trained_flow_integrates_to_one",
    r"test_baselines.py::test_a_flow_of_both_trains_is_saved_and_exported",
    # A new process and a compiled export of one conditional flow are in keras_life.
    r"test_conditional_saving.py::test_a_process_without_the_package_gets_the_same",
    r"test_fit_to_target.py::test_a_step_goes_along_the_gradient_of_the_divergence\[spline",
    r"test_composite_tensors.py::test_they_go_into_and_out_of_functions\[glow",
    # Composed flows and small kernels, for which the parts and the other kernels stand.
    r"test_exact_outside.py::test_no_option_of_a_layer_changes_its_gradient\[(1x1|conv1d)",
    r"test_exact_outside.py::test_gradients_are_finite_differences\[(conv_flow|glow_flow|channel_split in)",
    r"test_exact_outside.py::test_gradients_are_finite_differences\[learned_inverse, exact inversion-forward",
    r"test_contract.py::test_shapes_and_dtypes\[(conv_flow|glow_flow|channel_split in)",
    # Both the batch and the dtype have a fast case.
    r"test_contract.py::test_shapes_and_dtypes\[.*batch2-dtype2\]",
    # A graph of `glow_flow` is fast, and so is one of each layer.
    r"test_contract.py::test_graphs_equal_eager\[(conv_flow|glow_flow, lu|channel_split in|invert\(.*2d)",
    r"test_pickling.py::test_distributions_and_models_of_them\[glow_flow",
    r"test_networks_of_a_flow.py::test_.*\[(held|object|partial)\]",
    # Growth with depth, and the largest singular systems.
    r"test_nested_flows.py::test_a_level_of_nesting_costs_what_the_level_before_did\[glow",
    r"test_exact_conv.py::test_singular_to_working_precision_is_reported\[(shift|zero)",
)
